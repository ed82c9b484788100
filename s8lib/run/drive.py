"""Mirror a run folder to Google Drive while it trains: in the background, whatever the Drive does."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

from s8lib.models.weights import CONFIG, SAFETENSORS
from s8lib.run.drive_folder import DriveFolder, newest_first
from s8lib.run.folder import RunError, RunFolder, differences

PATIENCE = 600.0  # seconds; a Drive that needs longer for WRN-28-10 takes less than a megabyte a second


class DriveMirror:
    """Keeps the complete saves of a `RunFolder` in a folder of a mounted Drive.

    After each save one background thread copies what is new. The next save waits for it, so that copies never
    queue, but not forever. What goes wrong on the Drive is told in one line an epoch and tried again after the
    next; it never stops training. The thread itself says nothing: that would end up in whatever cell is running.

    Args:
        folder: the run's folder on the Drive; it is made when needed, but not the folder that it lies in.
        patience: seconds from its start for which a copy is waited for.
    Raises:
        RunError: if that one is not there. Made under a mountpoint without a Drive, it would block the next mount.
    """

    def __init__(self, folder: str | Path, patience: float = PATIENCE) -> None:
        self.folder = Path(folder).absolute()
        self.patience = patience
        self._drive = DriveFolder(self.folder)
        self._failing = False
        if not os.path.isdir(self.folder.parent):
            raise RunError(f"{self.folder.parent} is not there: mount Google Drive before training")

    def begin(self, run: RunFolder) -> None:
        """Start copying the newest save, unless a copy is still under way."""
        under_way = _under_way.get(self.folder)
        manifest = run.manifest()
        if manifest["checkpoints"] and not (under_way and under_way.is_alive()):
            _under_way[self.folder] = _Copy(self._drive, run.path, manifest, self.patience)
            _under_way[self.folder].start()

    def wait(self, run: RunFolder) -> None:
        """Wait for the copy under way, because the files of `run` are about to change; tell if it failed."""
        problem = self._outcome()
        if problem:
            run.say(f"Google Drive: {problem}; trying again with the next")
        elif self._failing:
            run.say("Google Drive: works again")
        self._failing = problem is not None

    def sync(self, run: RunFolder) -> bool:
        """Copy what is new, wait for it, and tell what is there; whether that is everything."""
        self._outcome()  # of an older save: what counts is the newest
        self.begin(run)
        problem = self._outcome()
        if problem:
            run.say(f"Google Drive: {problem}; the whole run is on this machine only, in {run.path}")
        elif self._drive.manifest["checkpoints"]:
            epochs = [str(entry["epoch"]) for entry in self._drive.manifest["checkpoints"].values()]
            run.say(f"Google Drive: holds the checkpoints of epochs {', '.join(epochs)} in {self.folder}")
        return problem is None

    def fetch(self, run: RunFolder, newer_than: int | None) -> Path | None:
        """Bring the newest save that verifies into `run`, if it is of a later epoch; its checkpoint there.

        Raises:
            RunError: if the two folders hold different runs, before anything is changed. If `run` holds no epoch,
                also if the Drive cannot be read, or holds nothing intact: a run never starts over silently.
        """
        self._outcome()  # training that was interrupted may have left a copy under way
        try:
            there = self._drive.read()
            differing = differences(there["identity"], run.manifest()["identity"])
            if differing:
                raise RunError(
                    f"{self.folder} and {run.path} hold different runs ({differing}): use another name for this "
                    "run, or move one of the two away"
                )
            return self._receive_save(run, there, newer_than)
        except OSError as error:
            if newer_than is None:
                raise RunError(
                    f"{self.folder} cannot be read ({error}), and a run must not start over because of that: "
                    "mount Google Drive again and repeat this, or use another name for this run"
                ) from error
            run.say(f"Google Drive: cannot be read ({error}); going on from epoch {newer_than} on this machine")
            return None

    def _receive_save(self, run: RunFolder, there: dict[str, Any], newer_than: int | None) -> Path | None:
        best, taken = there["best"], None
        for name, entry in newest_first(there):
            if newer_than is not None and entry["epoch"] <= newer_than:
                break
            if not self._drive.receive(f"checkpoints/{name}", run.checkpoints / name, entry):
                run.say(f"Google Drive: {name} is damaged there: passed over")
                continue
            if taken is None:
                self._receive_files(run, there, entry["epoch"])
                taken = run.checkpoints / name
                run.say(f"Google Drive: epoch {entry['epoch']} is brought here from {self.folder}")
            run.adopt(name, entry, there["identity"])
            if best is None or best["epoch"] <= entry["epoch"]:
                break  # else best is of a lost epoch, and that before it may be in an older checkpoint only
        if taken is None and newer_than is None and there["checkpoints"]:
            raise OSError(errno.EIO, "none of the checkpoints there is intact")
        return taken

    def _receive_files(self, run: RunFolder, there: dict[str, Any], epoch: int) -> None:
        """All of the save of `epoch` but its checkpoint."""
        files, best = there["files"].items(), there["best"]
        lost = [name for name, entry in files if not self._drive.receive(name, run.path / name, entry)]
        if lost:
            run.say(f"Google Drive: not as they were saved there, so left there: {', '.join(lost)}")
        place = self._drive.place_of_best(best)
        if place and best["epoch"] <= epoch:

            def write(folder: Path) -> None:
                self._drive.receive(f"{place}/{CONFIG}", folder / CONFIG, best["config"])
                self._drive.receive(f"{place}/{SAFETENSORS}", folder / SAFETENSORS, best)

            run.save_best(best["epoch"], write)

    def _outcome(self) -> str | None:
        """Wait for the copy under way, if any; what went wrong with it."""
        copy = _under_way.get(self.folder)
        if copy is None:
            return None
        copy.join(max(0, copy.deadline - time.monotonic()))
        if copy.is_alive():
            return f"copying epoch {copy.epoch} is not finished after {self.patience:.0f} s"
        del _under_way[self.folder]
        return f"epoch {copy.epoch} was not copied ({copy.problem})" if copy.problem else None


class _Copy(threading.Thread):
    """A copy of one save; `problem` says why it is not on the Drive, if it is not."""

    def __init__(self, drive: DriveFolder, source: Path, manifest: dict[str, Any], patience: float) -> None:
        super().__init__(name="copy to Google Drive", daemon=True)  # daemon: a process must end though Drive hangs
        self.drive, self.source, self.manifest = drive, source, manifest
        self.epoch = newest_first(manifest)[0][1]["epoch"]
        self.deadline = time.monotonic() + patience
        self.problem: str | None = "the copy broke off"

    def run(self) -> None:
        try:
            self.drive.copy(self.source, self.manifest)
            self.problem = None
        except OSError as error:
            self.problem = str(error)


# By folder on the Drive: a copy outlives the notebook cell, and the DriveMirror, that began it.
_under_way: dict[Path, _Copy] = {}
