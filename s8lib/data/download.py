"""Bring CIFAR-100 into a folder, from the Hugging Face Hub or else from Toronto: whole, or not at all."""

from __future__ import annotations

import shutil
import socket
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock, Timeout

HUB_REPO = "uoft-cs/cifar100"
HUB_FILES = ("cifar100/train-00000-of-00001.parquet", "cifar100/test-00000-of-00001.parquet")
TORONTO_FILES = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")
STALLED_AFTER = 60.0  # seconds without a byte; Toronto may be slow, and has needed an hour, but not silent


class DataError(ValueError):
    """CIFAR-100 is missing, damaged or different; the message names the file and says what to do."""


def download(folder: Path) -> None:
    """Fill `folder` with one of the two copies of CIFAR-100; return at once if one is there already.

    Whichever process comes first downloads (under torchrun all ranks come together), the others wait for it.
    A file gets its final name only when it is complete. Raises DataError, naming both reasons, if neither
    source delivers.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".download.lock")
        try:
            turn = lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process is downloading CIFAR-100 into {folder}: waiting for it.", flush=True)
            turn = lock.acquire()
    except OSError as error:
        raise DataError(f"{folder} cannot be written to ({one_line(error)}): name another folder.") from error
    with turn:
        if any(all((folder / name).is_file() for name in names) for names in (TORONTO_FILES, HUB_FILES)):
            return
        if (hub := _from_hub(folder)) is None:
            return
        print(f"The Hugging Face Hub did not deliver CIFAR-100 ({hub}): trying www.cs.toronto.edu.", flush=True)
        if (toronto := _from_toronto(folder)) is None:
            return
    raise DataError(
        f"CIFAR-100 could not be downloaded into {folder}, neither from the Hugging Face Hub ({hub}) nor "
        f"from www.cs.toronto.edu ({toronto}): try again later, or bring cifar-100-python/ from another "
        "machine and set S8_DATA to the folder that holds it."
    )


def _from_hub(folder: Path) -> str | None:
    """Download the parquet files; the reason if that fails. The client names a file when complete."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # httpx's or httpx2's, whichever this client is built on

    try:
        for name in HUB_FILES:
            # The dataset is public: without a token, an expired one on this machine cannot get in the way.
            hf_hub_download(HUB_REPO, name, repo_type="dataset", local_dir=folder, token=False)
    # OSError: all that the client has a class for (unreachable, 4xx, 5xx, offline mode, wrong size), and a
    # full disk. HTTPError: a connection that breaks in mid-file. RuntimeError: its Xet transport.
    except (OSError, HTTPError, RuntimeError) as error:
        return one_line(error)
    return None


def _from_toronto(folder: Path) -> str | None:
    """Download the archive through torchvision, which verifies it; the reason if that fails."""
    from torchvision.datasets import CIFAR100

    partial = folder / ".toronto"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process may have left
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_AFTER)  # torchvision sets none, and would wait forever
    try:
        CIFAR100(root=partial, download=True)
        (partial / "cifar-100-python").rename(folder / "cifar-100-python")
    # RuntimeError: torchvision's word for a wrong md5, which a cut connection ends in.
    except (OSError, HTTPException, RuntimeError) as error:
        return one_line(error)
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(partial, ignore_errors=True)
    return None


def one_line(error: BaseException) -> str:
    """What is at the root of `error`: the Hub client wraps "Connection refused" in a paragraph of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
