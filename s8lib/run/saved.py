"""A run that was trained before, found again: on this machine, on Google Drive, or on the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from s8lib.colab import run_folder, runs_here
from s8lib.data.cifar100 import Cifar100
from s8lib.defaults import SYNTHETIC, choose_data
from s8lib.run.folder import RunError, RunFolder
from s8lib.run.hub import MANIFEST, HubError, fetch_run


def find_run(which: str = "", kept: str | Path = "s8lib-runs", say: Callable[[str], None] = print) -> RunFolder:
    """A run on this machine's disk, brought there from Google Drive or from the Hub if that is where it is.

    Args:
        which: a run's name in `kept`, else a run's folder, else "user/name" on the Hub;
            "" is the newest in `kept`.
        kept: where runs are kept, as `colab.mount_drive` gave it.
    Raises:
        RunError: there is no such run, it holds no finished epoch, or it cannot be read.
        HubError: the Hub has no such repository, or it holds no run.
        ConnectionError: the Hub cannot be reached.
    """
    kept = Path(kept)
    which = which.strip() or _newest(kept)
    if Path(which).name == which and (kept / which / MANIFEST).exists():
        run = run_folder(kept, which, say)
        if run.mirror:
            with run.lock():
                run.resume()  # brings what Drive holds that this machine does not
    elif Path(which, MANIFEST).exists():
        run = RunFolder(which, say)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", which):
        run = _from_hub(which, runs_here(kept), say)
    else:
        raise RunError(f"{which!r} is no run in {kept}, no run's folder and no USER/NAME on the Hub")
    if run.last_epoch() is None:
        raise RunError(f"{run.path} holds no finished epoch: train there first")
    return run


def data_of(run: RunFolder, say: Callable[[str], None] = print) -> Cifar100:
    """What a run was trained on and is measured on: CIFAR-100, found as `load_cifar100` does, or the stand-in.

    Raises:
        RunError: it was neither.
    """
    from s8lib.report.card import CIFAR100_FINGERPRINT  # here: the report is slow to load

    identity = run.manifest()["identity"]
    on_cifar = identity is None or identity["data"]["sha256"] == CIFAR100_FINGERPRINT
    data = choose_data(None if on_cifar else SYNTHETIC, say=say)
    run.refuse_other_data(data)
    return data


def _newest(kept: Path) -> str:
    try:
        manifests = sorted(kept.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    except OSError as error:  # a Drive that is gone
        raise RunError(f"{kept} cannot be read ({error.strerror}): mount Google Drive again") from error
    if not manifests:
        raise RunError(
            f"{kept} holds no run: train one first, with session_8.ipynb or `python -m s8lib train`, or name a "
            "run's folder or a repository of the Hub"
        )
    return manifests[-1].parent.name


def _from_hub(repo_id: str, folder: Path, say: Callable[[str], None]) -> RunFolder:
    run = RunFolder(folder / repo_id.replace("/", "--"), say)
    if fetch_run(repo_id, run):
        return run
    if run.last_epoch() is None:
        raise HubError(f"{repo_id} on the Hub holds no run of s8lib: name another repository")
    say(f"{run.path} holds epoch {run.last_epoch()} already: remove that folder to fetch anew")
    return run
