"""CIFAR-100's files: where they are in a folder, and how they get there, from the Hub or else from Toronto."""

import os
import shutil
import socket
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock, Timeout

from s8lib.machine.progress import tell
from s8lib.validation import BadInput, one_line

HUB_REPO = "uoft-cs/cifar100"
HUB_FILES = {split: f"cifar100/{split}-00000-of-00001.parquet" for split in ("train", "test")}
TORONTO_FILES = {name: f"cifar-100-python/{name}" for name in ("train", "test", "meta")}
STALLED_AFTER = 60.0  # seconds without a byte; Toronto may be slow, and has needed an hour, but not silent


class DataError(BadInput):
    """Data that are missing, damaged or of another kind; the message says which, and what to do."""


def find(folder: Path) -> dict[str, Path]:
    """Where the files of the most complete copy in `folder` are, or should be, by what they hold."""
    layouts = [
        {name: folder / part_of(file) for name, file in files.items()}
        for files in (TORONTO_FILES, HUB_FILES)
        for part_of in (str, os.path.basename)  # `folder` holds the copy's folder, or is it
    ]
    return min(layouts, key=lambda files: len(missing_of(files)) / len(files))


def missing_of(files: dict[str, Path]) -> list[Path]:
    """Those of `files` that are not there."""
    # os.path's isfile is False where Path's would raise: for a name too long, say.
    return [path for path in files.values() if not os.path.isfile(path)]


def download(folder: Path) -> None:
    """Fill `folder` with one of the two copies of CIFAR-100; return at once if one is there already.

    Whichever process comes first downloads (under torchrun all ranks come together), the others wait for it.
    A file gets its final name only when it is complete. Raises DataError, naming both reasons, if neither
    source delivers.
    """
    from huggingface_hub.errors import HTTPError  # httpx's or httpx2's, whichever this client is built on

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".download.lock")
        try:
            turn = lock.acquire(timeout=0)
        except Timeout:
            tell(f"Another process is downloading CIFAR-100 into {folder}: waiting for it.")
            turn = lock.acquire()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = f"{str(folder)[:300]} cannot be written to ({one_line(error)})"
        raise DataError(f"{reason}: name another folder.") from error
    failures: list[str] = []
    with turn:
        if not missing_of(find(folder)):
            return
        for source, fetch in (("the Hugging Face Hub", _from_hub), ("www.cs.toronto.edu", _from_toronto)):
            if failures:
                tell(f"CIFAR-100 did not come {failures[-1]}: trying {source}.")
            try:
                fetch(folder)
                return
            # OSError: no connection, 4xx, 5xx, offline mode, wrong size, full disk. HTTP errors: the line breaks.
            # RuntimeError: the Hub's Xet transport; torchvision's word for a wrong md5.
            except (OSError, HTTPError, HTTPException, RuntimeError) as error:
                failures.append(f"from {source} ({one_line(error)})")
    raise DataError(
        f"CIFAR-100 could not be downloaded into {folder}, neither {' nor '.join(failures)}: try again later, or "
        "bring cifar-100-python/ from another machine and set S8_DATA to the folder that holds it."
    )


def _from_hub(folder: Path) -> None:
    """Download the parquet files; the client gives a file its name when it is complete."""
    from huggingface_hub import hf_hub_download

    from s8lib.hub_client import without_xet

    for name in HUB_FILES.values():
        with without_xet():  # The dataset is public: without a token, an expired one cannot get in the way.
            hf_hub_download(HUB_REPO, name, repo_type="dataset", local_dir=folder, token=False)


def _from_toronto(folder: Path) -> None:
    """Download the archive through torchvision, which verifies it."""
    from torchvision.datasets import CIFAR100

    partial = folder / ".toronto"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process may have left
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_AFTER)  # torchvision sets none, and would wait forever
    try:
        CIFAR100(root=partial, download=True)
        (folder / "cifar-100-python").mkdir(exist_ok=True)  # which may hold a part of it already
        for file in (partial / "cifar-100-python").iterdir():
            os.replace(file, folder / "cifar-100-python" / file.name)
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(partial, ignore_errors=True)
