"""A run's folder on Google Drive, which disconnects, fills up and forgets.

On Colab the Drive is a folder, but renaming is not atomic there, a write can vanish with the connection, and what
is deleted lies in the Trash at full size. So a new file is written straight to its name, read back and compared;
the manifest that names it comes after it, in two copies, one of them whole at any moment; and only then is what is
no longer named emptied and deleted. Whoever reads takes no file that is not what the manifest says.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from s8lib.run import save as saves
from s8lib.run.place import Place, Sending
from s8lib.run.save import FULL, KEEP, MANIFEST, Content, Manifest, RunError, RunFault, differences, refuse_another
from s8lib.validation import user_path

MANIFESTS = (MANIFEST, "manifest.copy.json")  # alike; the first is what a RunFolder reads
BEST = ("best", "best.new")  # the second only while the first holds the weights that count
CHUNK = 4 << 20


class DriveFolder(Place):
    """The place for a run's saves on a mounted Drive; see `place.Place`.

    Args:
        path: the run's folder on the Drive; it is made when needed, but not the folder that it lies in.
    Raises:
        RunError: if that one is not there. Made under a mountpoint without a Drive, it would block the next mount.
    """

    # What touches the Drive goes through `open` and `os` in this file: the tests put a misbehaving Drive there.

    title = "Google Drive"

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path).absolute()
        self.address = str(self.path)
        self._copies: dict[str, Manifest] = {}  # those of MANIFESTS that are whole, as last read or written
        self._seen: dict[str, str] = {}  # sha256 of files as last read
        # Training processes that may have written the manifest: this one, and the one it took over from, whose
        # last write may come late. None before the first `claim` or `send`.
        self._writers = set[str]()
        if not self.path.parent.is_dir():
            raise RunError(f"{self.path.parent} is not there: mount Google Drive before training")

    @property
    def _manifest(self) -> Manifest:
        """The newest that is whole."""
        return max(self._copies.values(), key=lambda manifest: manifest.sequence, default=Manifest())

    def manifest(self) -> Manifest:
        """Read the newest manifest that is whole."""
        before, self._copies = self._manifest, {}
        if self.path.name in os.listdir(self.path.parent):  # fails where the Drive is gone
            self._copies = {name: found for name in MANIFESTS if (found := self._read_manifest(name))}
            # A first copy that was cut off leaves one checkpoint that no manifest names.
            if not self._manifest.checkpoints and len(self._names("checkpoints")) > (1 if self._copies else 0):
                raise OSError(errno.EIO, "it holds checkpoints, but no manifest that names them")
        if self._manifest != before:
            self._seen.clear()  # what was written may have vanished, or someone else has written
        return self._manifest

    def claim(self, here: Manifest) -> str:
        """Name this training process in the manifest, if the save there is of its run: another one then stops."""
        there = self.manifest()
        if there.epoch > here.epoch or differences(there.identity, here.identity):
            return ""
        _make_folder(self.path)
        self._writers = {"", there.writer, here.writer}
        self._commit(writer=here.writer)
        return there.writer

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Copy a file from the Drive to `target`, if it is the one."""
        for place in saves.places(name):
            if self._holds(place, content):
                with open(self.path / place, "rb") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
                return True
        return False

    def send(self, save: Sending) -> str:
        """Bring a save onto the Drive, if the run there is this one, and nobody has taken it over since `claim`.

        It keeps the newest five. A resume has brought what is newer there, unless it could not read the Drive.
        """
        there = self.manifest()
        refuse_another(there.identity, save.manifest.identity, self.path)
        self._writers = self._writers or {"", there.writer}
        self._look()
        self._writers.add(save.manifest.writer)
        save.looked.set()
        try:
            for folder in (self.path, self.path / "checkpoints"):  # not their parent, which a mount must bring
                _make_folder(folder)
            for epoch, name in there.checkpoints.items():
                if epoch > save.manifest.epoch and self._holds(name, there.files[name]):
                    raise RunError(f"{self.path} holds {name}: start again to go on from it")
            self._commit()  # a first one at once, so that checkpoints without a manifest always mean damage
            if not self._manifest.checkpoints:
                self._free_the_rest()  # of a first copy that was cut off, or each cut would leave one more
            while True:
                try:
                    self._send_save(save)
                    break
                except OSError as error:
                    if error.errno not in FULL or not self._make_room():
                        raise
            self._free_the_rest()
        except OSError:
            self._seen.clear()  # what was written may vanish with the connection
            raise
        return ""

    def summary(self) -> str:
        epochs = ", ".join(str(epoch) for epoch in sorted(self._manifest.checkpoints))
        return f"{self.title}: holds the checkpoints of epochs {epochs} in {self.path}"

    def missing(self, path: Path, epoch: int) -> str:
        return f"{self.title}: epoch {epoch} is NOT there; the whole run is on this machine only, in {path}"

    def _read_manifest(self, name: str) -> Manifest | None:
        try:
            with open(self.path / name, "rb") as file:
                found = Manifest.unseal(file.read())
        except RunError:
            raise
        except (FileNotFoundError, ValueError):
            return None
        if found.sequence == 0 and found.checkpoints:  # format 1, of a RunFolder: its save is not to be undone
            raise OSError(errno.EEXIST, "a run has trained in this very folder: go on with it there")
        return found

    def _look(self) -> None:
        """Raise RunFault if another training process has taken over: what is there is its own from then on."""
        for there in map(self._read_manifest, MANIFESTS):  # both: the other machine may be writing one
            if there and there.sequence >= self._manifest.sequence and there.writer not in self._writers:
                raise RunFault(f"another machine goes on with the run in {self.path}: this one stops")

    def _send_save(self, save: Sending) -> None:
        """Everything of the save that is not there yet, each thing before the manifest that names it."""
        new, best = save.manifest, save.manifest.best()
        newest = new.checkpoints[new.epoch]
        for name in (newest, *new.files.keys() - best.keys() - {newest}):
            self._send(save, name, name)
        older = [older for epoch, older in self._still_there().items() if epoch < new.epoch][: KEEP - 1]
        files = {name: self._manifest.files[name] for name in (*older, *self._manifest.best())}
        files |= {name: content for name, content in new.files.items() if name not in best}
        changes: dict[str, Any] = {"files": files, "identity": new.identity, "writer": new.writer}
        if new.best_epoch in dataclasses.replace(new, files=files).checkpoints:
            self._commit(**changes)  # already: until the best weights are there, that checkpoint has them
        if best:
            place = BEST[0]
            if self._place_of(best) != place and self._place_of(self._manifest.best()) == place:
                place = BEST[1]  # new weights never take the place of those that the manifest on the Drive names
            _make_folder(self.path / place)
            for name in best:
                self._send(save, name, f"{place}/{Path(name).name}")
            changes |= {"files": files | best, "best_epoch": new.best_epoch}
        self._commit(**changes)

    def _send(self, save: Sending, name: str, target: str) -> None:
        """Copy a file, unless it is there, and verify the copy."""
        content = save.manifest.files[name]
        if not self._holds(target, content):
            if target in self._names(target.rpartition("/")[0]):  # and not a small one beside the manifest
                self._free(target)  # another machine may still have it open, and then writes into the old one
            with (save.folder / name).open("rb") as file:
                self._write(target, file, content)
            save.moved += content.bytes

    def _commit(self, **changes: Any) -> None:
        """Write the manifest with what has changed in it."""
        manifest = dataclasses.replace(self._manifest, **changes)
        if all(self._copies.get(name) == manifest for name in MANIFESTS):
            return
        manifest = dataclasses.replace(manifest, sequence=manifest.sequence + 1)
        text = manifest.seal()
        content = Content(len(text), hashlib.sha256(text).hexdigest())
        # Last the only one that is whole.
        for name in sorted(MANIFESTS, key=lambda name: self._copies.get(name) == self._manifest):
            self._copies.pop(name, None)
            self._write(name, io.BytesIO(text), content)
            self._copies[name] = manifest

    def _write(self, name: str, source: BinaryIO, content: Content) -> None:
        self._look()
        self._seen.pop(name, None)
        if content.bytes > shutil.disk_usage(self.path).free:  # Colab's would take it, and lose it without a word
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        with open(self.path / name, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
            file.flush()
            os.fsync(file.fileno())
        if not self._holds(name, content):
            self._look()  # it may be the other machine's
            raise OSError(errno.EIO, f"{name} reads back as something else than was to be written")

    def _holds(self, name: str, content: Content) -> bool:
        """Whether the Drive has this very file; it is read only if it was not yet."""
        if not self._has(name, content):
            return False
        if name not in self._seen:
            with open(self.path / name, "rb") as file:
                self._seen[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._seen[name] == content.sha256

    def _has(self, name: str, content: Content) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path / name).st_size == content.bytes
        return False

    def _place_of(self, best: dict[str, Content]) -> str | None:
        """The one of BEST that holds these weights."""
        places = (p for p in BEST if best and all(self._holds(f"{p}/{Path(n).name}", c) for n, c in best.items()))
        return next(places, None)

    def _still_there(self) -> dict[int, str]:
        """The checkpoints that the manifest names, newest first, less those that are gone or cut short."""
        files = self._manifest.files
        return {epoch: n for epoch, n in self._manifest.checkpoints.items() if self._has(n, files[n])}

    def _names(self, folder: str) -> list[str]:
        names = os.listdir(self.path / folder) if folder in os.listdir(self.path) else []
        return [f"{folder}/{name}" for name in names]

    def _free_the_rest(self) -> None:
        """Free checkpoints that the manifest does not name, and the other place of best."""
        for name in self._names("checkpoints"):
            if saves.CHECKPOINT.fullmatch(name) and name not in self._manifest.files:
                self._free(name)
        place = self._place_of(self._manifest.best())
        for other in BEST:
            if place and other != place and other in os.listdir(self.path):
                for name in self._names(other):
                    self._free(name)
                os.rmdir(self.path / other)

    def _make_room(self) -> bool:
        """On a full Drive, give up what was being written and the oldest checkpoint, if a newer one is intact."""
        self._free_the_rest()
        names, files = list(self._still_there().values()), self._manifest.files
        if not any(self._holds(name, files[name]) for name in names[:-1]):
            return False
        self._free(names[-1])
        return True

    def _free(self, name: str) -> None:
        """Empty a file, then delete it: the Trash counts towards the quota."""
        self._look()
        self._seen.pop(name, None)
        with open(self.path / name, "wb"):
            pass
        self._look()
        os.unlink(self.path / name)


def _make_folder(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
