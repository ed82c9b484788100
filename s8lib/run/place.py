"""A place that holds saves: what it can do, and how a save comes from there into a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from s8lib.run.checkpoint import Checkpoint
from s8lib.run.save import CHECKPOINT, LOG, NEW, WEIGHTS, Content, Manifest, RunError, differences, holds

if TYPE_CHECKING:
    from s8lib.run.folder import RunFolder


class NotSent(OSError):
    """A place did not take a save.

    Attributes:
        permanent: trying again does not help before something is changed.
        retry_after: seconds that the place wants to be left alone.
    """

    def __init__(self, reason: str, permanent: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.permanent, self.retry_after = permanent, retry_after


@dataclass(frozen=True)
class Staged:
    """A save that training cannot change any more: its manifest, and its files under their names in `folder`."""

    folder: Path
    manifest: Manifest
    unnamed: tuple[str, ...]  # files that come with it and that the manifest does not answer for
    message: str

    @property
    def bytes(self) -> int:
        """Of what the manifest answers for."""
        return sum(content.bytes for content in self.manifest.files.values())


class Place(Protocol):
    """Where saves are kept a second time. The one who trains calls `manifest`, `receive` and `claim`; the thread
    of `Copies` calls `look` and `send`.

    Every method may raise OSError, whatever is wrong there; RunError for what somebody has to change first; and
    `look`, `claim` and `send` RunFault if another process has taken the run over.
    """

    title: str  # in what is said
    address: str
    required: bool  # a run is not begun without having looked there
    moved: int  # bytes of the save under way, or of the last one, that have gone out; a place may not know
    overwrite: bool  # another run that is there is no error: it is replaced

    def manifest(self) -> Manifest:
        """Of the newest save there; an empty one if there is none."""

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Bring a file of the save, in one piece; whether there is one. `bring` verifies it."""

    def look(self, new: Manifest) -> None:
        """See that this save may come there; RunFault if another process has taken the run over since `claim`."""

    def claim(self, here: Manifest) -> None:
        """From now on the training process that has written `here` saves there."""

    def send(self, save: Staged, stop: threading.Event) -> str:
        """Bring a save there, its manifest last, and drop what is too old; what there is to say about it.

        It sets nothing back to an earlier epoch, and may give up when `stop` is set.
        """

    def summary(self) -> str:
        """What is there, in words; "" if that has been said."""

    def missing(self, run: RunFolder, epoch: int) -> str:
        """What to do, as `epoch` is not there."""


def bring(place: Place, run: RunFolder, newest: int, identity: Mapping[str, Any] | None = None) -> int:
    """Bring the newest save that verifies into `run`, if it is of a later epoch than `newest`; its epoch or 0.

    Raises:
        RunError: another run is there, or `run` holds no epoch and nothing there is intact.
        OSError: the place cannot be read.
    """
    there, here = place.manifest(), run.manifest()
    if differing := differences(there.identity, here.identity or identity):
        if place.overwrite:
            run.say(f"{place.title}: another run is there ({differing}): this one starts without")
            return 0
        raise RunError(
            f"{place.title}: {place.address} and {run.path} hold different runs ({differing}): use another "
            "name for this run, move one of the two away, or, on the Hub, say overwrite"
        )
    title, taken, best = place.title, 0, there.best()
    for epoch, name in there.checkpoints.items():
        if epoch <= newest:
            break
        if _bring(place, run, name, there.files[name]):
            taken = best_of_log = epoch
            with contextlib.suppress(RunError):  # a stranger's checkpoint: `resume` says so
                best_of_log = Checkpoint.load(run.path / NEW / name).log.best.epoch
            break
        run.say(f"{title}: {name} is damaged there: passed over")
    if not taken:
        if newest == 0 and there.checkpoints:
            raise RunError(
                f"{title}: none of the checkpoints in {place.address} is intact: bring one back, or use "
                "another name for this run"
            )
        return 0
    best_epoch = there.best_epoch if (there.best_epoch or 0) <= taken else None
    wanted = best if best_epoch else {}
    brought = {name for name, content in wanted.items() if _bring(place, run, name, content)}
    if WEIGHTS not in brought:  # a config.json that is damaged there is written anew
        best_epoch = here.best_epoch
        shutil.rmtree(run.path / NEW / "best", ignore_errors=True)
    if best_of_log not in (best_epoch, taken) and (holder := there.checkpoints.get(best_of_log)):
        _bring(place, run, holder, there.files[holder])  # has the best weights too
    small = {name: c for name, c in there.files.items() if name not in best and not CHECKPOINT.fullmatch(name)}
    lost = [name for name, content in small.items() if not _bring(place, run, name, content)]
    lost += sorted(wanted.keys() - brought)
    if lost:
        run.say(f"{title}: not as they were saved there, so left there: {', '.join(lost)}")
    for name in small.keys() - {LOG, *lost}:
        os.replace(run.path / NEW / name, run.path / name)
    run.install(dataclasses.replace(there, files=here.files, best_epoch=best_epoch, sequence=here.sequence))
    run.say(f"{title}: epoch {taken} is brought to {run.path} from {place.address}")
    return taken


def _bring(place: Place, run: RunFolder, name: str, content: Content) -> bool:
    target = run.path / NEW / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if place.receive(name, content, target) and holds(target, content):
        return True
    target.unlink(missing_ok=True)
    return False
