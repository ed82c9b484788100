"""The run folder: the place on this disk, where a run is trained. It knows files, not training.

A save is written under new names, then `manifest.json` names it, then its files move into place. A kill at any
moment leaves the newest complete save; the next start finishes the moving.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from s8lib.machine.progress import tell
from s8lib.recipe import Recipe
from s8lib.run import save as saves
from s8lib.run.checkpoint import Checkpoint
from s8lib.run.reading import RunReader
from s8lib.run.save import LOG, MANIFEST, NEW, Manifest, RunError, RunFault, holds, refuse_another, replacing

if TYPE_CHECKING:
    from s8lib.run.copies import Copies

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
Write = Callable[[Path], object]


class RunFolder(RunReader):
    """A run's folder, made when first written to.

    Args:
        path: the folder.
        say: takes one line for people at a time.
        copies: keep the saves in other places too.
    """

    def __init__(self, path: str | Path, say: Callable[[str], None] = tell, copies: Iterable[Copies] = ()) -> None:
        super().__init__(path, say)
        self.copies = list(copies)
        self.writer = uuid.uuid4().hex  # this training process, in the manifest
        self._passed_over = set[str]()  # checkpoints that are newer than the one gone on from

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one training process; the lock goes with the process, however it ends.

        Leaving it in peace brings the copies up to date.

        Raises:
            RunError: if another process holds it, or the folder cannot be used.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", fallback_to_soft=False)
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"another process is training in {self.path}: wait for it or stop it") from None
        except (OSError, NotImplementedError, ValueError) as error:
            number = getattr(error, "errno", errno.ENOSYS)
            why = "its file system has no locks, so two processes could train there at once"
            reason = why if number in NO_LOCKS else getattr(error, "strerror", None) or error
            raise RunError(f"the run folder {self.path} cannot be used ({reason}): use another one") from error
        try:
            yield
            with _in_mid_run("the copies cannot be brought up to date"):
                self.sync()
        finally:
            lock.release()

    def sync(self) -> bool:
        """Bring the copies, if there are any, up to date and tell what they hold; whether that is everything."""
        done = [copies.finish(self) for copies in self.copies]  # all of them, whatever the first comes to
        return all(done)

    def fetch(self, identity: Mapping[str, Any] | None = None) -> int:
        """Bring the newest save that verifies here, from wherever it is; its epoch, or 0 if there is none.

        Args:
            identity: of the run that is meant, if one is.
        Raises:
            RunError: another run is here, or saves are, and none of them verifies.
        """
        manifest = self.manifest()
        refuse_another(manifest.identity, identity, self.path)
        self._settle()
        for partial in (*self.path.glob("*.json" + saves.PARTIAL), *self.path.glob("*.csv" + saves.PARTIAL)):
            partial.unlink()
        for epoch, path in self._on_disk().items():
            if epoch not in manifest.checkpoints:
                self.say(f"{path} is no part of the run's saves: left alone")
        newest = self._newest_intact(manifest)
        problems: dict[Copies, RunError] = {}
        for copies in self.copies:
            try:
                newest = copies.fetch(self, newest, identity) or newest
            except RunError as error:  # another place may have what this one lacks
                problems[copies] = error
        for copies, problem in problems.items():
            if not newest:
                raise problem
            newest = copies.fetch(self, newest, identity) or newest
        for old in (".hub", saves.OUTGOING):
            shutil.rmtree(self.path / old, ignore_errors=True)
        if not newest and manifest.checkpoints:
            raise RunError(
                f"none of the checkpoints that {self.path / MANIFEST} names is intact: bring one back into "
                f"{self.checkpoints}, or start in another run folder"
            )
        names = self.manifest().checkpoints
        self._passed_over = {name for epoch, name in names.items() if epoch > newest}
        return newest

    def resume(self, identity: Mapping[str, Any] | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies, on the CPU, or None in a fresh folder; raises as `fetch`."""
        epoch = self.fetch(identity)
        if not epoch:
            return None
        checkpoint = Checkpoint.load(self.path / self.manifest().checkpoints[epoch])
        if checkpoint.epoch != epoch:
            raise RunError(f"{self.checkpoints}: the checkpoint of epoch {epoch} holds epoch {checkpoint.epoch}")
        refuse_another(checkpoint.identity, identity, self.path)
        return checkpoint

    def begin_session(self, recipe: Recipe, settings: Mapping[str, Any]) -> None:
        """Write what a reader needs, once a start or resume, and `claim` the run; RunFault as `save`."""
        self.claim()
        session = {"from_epoch": self.manifest().epoch + 1, **settings}
        with self._writing("this start"):
            self.write_json("recipe.json", recipe.to_dict())
            self.write_json("environment.json", [*self.sessions(), session])

    def claim(self) -> None:
        """From now on this process saves here: another one that still trains this run stops at its next save."""
        with self._writing("this start"):
            self._commit(dataclasses.replace(self.manifest(), writer=self.writer))
        for copies in self.copies:
            copies.claim(self)
        if self._passed_over:  # named until now, as it may be the newest there
            manifest = self.manifest()
            files = {name: content for name, content in manifest.files.items() if name not in self._passed_over}
            with self._writing("this start"):
                self._commit(dataclasses.replace(manifest, files=files))

    def save(self, checkpoint: Checkpoint, save_best: Write | None = None) -> None:
        """Save `checkpoint`, its log as `epoch_log.csv` and, if given, new best weights.

        Args:
            save_best: writes `config.json` and `model.safetensors` into the folder it is given.
        Raises:
            RunFault: the save could not be made; those of before are whole. Or another process trains this run.
        """
        epoch = checkpoint.epoch
        with _in_mid_run(f"epoch {epoch} cannot be saved"):
            manifest = self.manifest()
        if manifest.writer != self.writer:
            raise RunFault(
                f"epoch {epoch} is not saved: another process has gone on with the run in {self.path}, or its "
                f"{MANIFEST} was replaced; this one stops, and what is there is unchanged"
            )
        older = [name for older, name in manifest.checkpoints.items() if older < epoch][: saves.KEEP - 1]
        kept = {name: manifest.files[name] for name in [*older, *manifest.best()]}

        def write(new: Path) -> None:
            checkpoint.save(new / f"checkpoints/epoch_{epoch:03d}.pt")
            (new / LOG).write_text(checkpoint.log.to_csv(), encoding="utf-8")
            if save_best:
                save_best(new / "best")

        best_epoch, size = epoch if save_best else manifest.best_epoch, checkpoint.size() * 3 // 2
        self.renew(write, f"epoch {epoch}", size, files=kept, best_epoch=best_epoch, identity=checkpoint.identity)

    def copy(self) -> None:
        """Keep the newest save in the other places too, in the background; RunFault as `Copies.after_save`."""
        with _in_mid_run("the newest save cannot be copied"):
            for copies in self.copies:
                copies.after_save(self)

    def renew(self, write: Write, what: str = "what was damaged", needed: int = 0, **changes: Any) -> None:
        """Replace files of the newest save, or make the next one, in one piece; RunFault as `save`.

        `write` puts the files into the folder it is given, in their places; `changes` are the manifest's.
        """
        new, manifest = self.path / NEW, self.manifest()
        shutil.rmtree(new, ignore_errors=True)
        with self._writing(what, needed):
            for folder in ("checkpoints", "best"):
                (new / folder).mkdir(parents=True)
            write(new)
            self.install(dataclasses.replace(manifest, **changes))

    def install(self, manifest: Manifest) -> None:
        """The one door for a save: name what lies in `.new` beside the files of `manifest`, then move it in."""
        new = self.path / NEW
        files = [path for path in sorted(new.rglob("*")) if path.is_file()]
        for path in [*files, *{path.parent for path in files}]:
            saves.flush(path)
        found = {path.relative_to(new).as_posix(): saves.content_of(path) for path in files}
        self._commit(dataclasses.replace(manifest, files=manifest.files | found))  # now this save happened
        self._settle()

    def write_json(self, name: str, value: object) -> None:
        """Write a file that informs, in one piece: a reader sees the old one or the new, never half of it.

        Where something lies that cannot be replaced, that is said.
        """
        try:
            with replacing(self.path / name) as partial:
                partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        except (IsADirectoryError, PermissionError) as error:  # Windows: another program holds it open
            self.say(f"{self.path / name} cannot be replaced ({error.strerror}): it stays as it is")

    def _commit(self, manifest: Manifest) -> None:
        manifest = dataclasses.replace(manifest, sequence=manifest.sequence + 1)
        with replacing(self.path / MANIFEST) as partial:
            partial.write_bytes(manifest.seal())

    def _settle(self) -> None:
        """Move what the manifest names into its place, and remove what it does not name any more."""
        manifest = self.manifest()
        for name, content in manifest.files.items():
            place, *others = (self.path / where for where in saves.places(name))
            for other in others:
                if other.is_file() and holds(other, content):
                    self._move(other, place)
        for folder in (NEW, "best.new"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for epoch, path in self._on_disk().items():
            if epoch < min(manifest.checkpoints, default=0):
                path.unlink(missing_ok=True)

    def _move(self, source: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        try:
            os.replace(source, target)
        except PermissionError as error:
            if target.name != LOG:
                raise
            self.say(f"{target} is held open by another program ({error}): it is renewed with the next save")
        saves.flush(target.parent)

    @contextlib.contextmanager
    def _writing(self, what: str, needed: int = 0) -> Iterator[None]:
        """Make a RunFault of what the disk refuses; `needed` are the bytes that are to be written."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's word for it, among others
            cause = error.__context__ if isinstance(error.__context__, OSError) else error  # the file's own word
            free, reason = shutil.disk_usage(self.path).free, " ".join(str(cause).split())
            if free < needed or getattr(cause, "errno", None) in saves.FULL:
                room = f", {needed / 1e6:.0f} MB needed" if needed else ""
                reason = f"the disk is full ({free / 1e6:.0f} MB free{room})"
            with contextlib.suppress(OSError, RunError):  # the next start tries again
                self._settle()
            raise RunFault(f"{what} cannot be saved: {reason}; {how_to_go_on(self)}") from error


@contextlib.contextmanager
def _in_mid_run(what: str) -> Iterator[None]:
    """Make a RunFault of what would be bad input at a start."""
    try:
        yield
    except RunError as error:
        raise RunFault(f"{what}: {error}") from error


def how_to_go_on(run: RunFolder | None) -> str:
    """What someone whose run has just stopped needs to know, as the end of a sentence."""
    epoch = 0
    with contextlib.suppress(RunError):
        epoch = run.manifest().epoch if run else 0
    if not run or not epoch:
        return "no checkpoint was saved yet"
    return f"the last good checkpoint is epoch {epoch} in {run.path}, and the same command goes on from there"
