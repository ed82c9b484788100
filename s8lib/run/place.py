"""A place that holds saves: what it can do, and how a save comes from there into a run folder."""

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from s8lib.run.checkpoint import Checkpoint
from s8lib.run.save import LOG, NEW, WEIGHTS, Content, Manifest, RunError, differences, holds, refuse_another

if TYPE_CHECKING:
    from s8lib.run.folder import RunFolder


class Sending(threading.Thread):
    """A save on its way to a place. A daemon: the process must end though a place hangs.

    Attributes:
        folder: where its files lie under their names, and training changes nothing.
        message: what the copy is called.
        bytes: of what the manifest answers for.
        looked: set when it is seen that the save may come to the place.
        stop: set when nobody waits for it any more.
        moved: bytes that have gone out, as far as the place can tell.
        said: what there is to say once it has arrived.
        problem: why it has not arrived.
    """

    def __init__(self, place: "Place", run_path: Path, folder: Path, manifest: Manifest, message: str) -> None:
        super().__init__(name=f"copy to {place.title}", daemon=True)
        self.place, self.run_path, self.folder, self.manifest = place, run_path, folder, manifest
        self.message, self.moved, self.said = message, 0, ""
        self.bytes = sum(content.bytes for content in manifest.files.values())
        self.looked, self.stop = threading.Event(), threading.Event()
        self.problem: Exception | None = OSError("the copy broke off")

    def run(self) -> None:
        try:
            self.said = self.place.send(self)
            self.problem = None
        except (OSError, RuntimeError, ValueError) as error:  # RunFault is a RuntimeError, RunError a ValueError
            self.problem = error
        finally:
            self.looked.set()


class Place(Protocol):
    """Where saves are kept a second time. The one who trains calls `manifest`, `receive` and `claim`; the thread
    of `Copies` calls `send`.

    Every method may raise OSError, whatever is wrong there; RunError for what somebody has to change first; and
    `claim` and `send` RunFault if another process has taken the run over.
    """

    title: str  # in what is said
    address: str
    overwrite: bool = False  # another run that is there is no error: it is replaced

    def manifest(self) -> Manifest:
        """Of the newest save there; an empty one if there is none."""

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Bring a file of the save; whether there is one. `bring` verifies it."""

    def claim(self, here: Manifest) -> str:
        """From now on the training process that has written `here` saves there; the one before it, "" if none."""

    def send(self, save: Sending) -> str:
        """Bring a save there, its manifest last, and drop what is too old; what there is to say about it.

        It sets nothing back to an earlier epoch, sets `save.looked`, and may give up when `save.stop` is set.
        """

    def summary(self) -> str:
        """What is there, in words; "" if that has been said."""
        return ""

    def missing(self, path: Path, epoch: int) -> str:
        """What to do, as `epoch` of the run in `path` is not there."""


def bring(place: Place, run: "RunFolder", newest: int, identity: Mapping[str, Any] | None = None) -> int:
    """Bring the newest save that verifies into `run`, if it is of a later epoch than `newest`; its epoch or 0.

    Raises:
        RunError: another run is there, or `run` holds no epoch and nothing there is intact.
        OSError: the place cannot be read.
    """

    def brought(name: str) -> bool:
        """Whether the file is among the new ones now, as the manifest there describes it."""
        target = run.path / NEW / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if place.receive(name, there.files[name], target) and holds(target, there.files[name]):
            return True
        target.unlink(missing_ok=True)
        run.say(f"{place.title}: {name} is damaged there: passed over")
        return False

    there, here = place.manifest(), run.manifest()
    own = here.identity or identity
    if place.overwrite and (differing := differences(there.identity, own)):
        run.say(f"{place.title}: another run is there ({differing}): this one starts without")
        return 0
    refuse_another(there.identity, own, place.address)
    newer = {epoch: name for epoch, name in there.checkpoints.items() if epoch > newest}
    taken = best_of_log = next((epoch for epoch, name in newer.items() if brought(name)), 0)
    if not taken:
        if newer and newest == 0:
            raise RunError(
                f"{place.title}: none of the checkpoints in {place.address} is intact: bring one back, or use "
                "another name for this run"
            )
        return 0
    with contextlib.suppress(RunError):  # a stranger's checkpoint: `resume` says so
        best_of_log = Checkpoint.load(run.path / NEW / newer[taken]).log.best.epoch
    best_epoch = there.best_epoch if there.best_epoch and there.best_epoch <= taken else None
    if WEIGHTS not in [name for name in there.best() if best_epoch and brought(name)]:
        best_epoch = here.best_epoch  # while a config.json that is damaged there is written anew
        shutil.rmtree(run.path / NEW / "best", ignore_errors=True)
    if best_of_log not in (best_epoch, taken) and best_of_log in there.checkpoints:
        brought(there.checkpoints[best_of_log])  # has the best weights too
    small = there.files.keys() - there.best().keys() - {*there.checkpoints.values()}
    for name in [*filter(brought, small)]:  # all of them before the first takes its place
        if name != LOG:
            os.replace(run.path / NEW / name, run.path / name)
    run.install(dataclasses.replace(there, files=here.files, best_epoch=best_epoch, sequence=here.sequence))
    run.say(f"{place.title}: epoch {taken} is brought to {run.path} from {place.address}")
    return taken
