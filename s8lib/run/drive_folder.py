"""A run's folder on Google Drive, which disconnects, fills up and forgets.

On Colab the Drive is a folder, but renaming is not atomic there, a write can vanish with the connection, and what
is deleted lies in the Trash at full size. So a new file is written straight to its name, read back and compared;
the manifest that names it comes after it, in two copies, one of them whole at any moment; and only then is what is
no longer named emptied and deleted. Whoever reads takes no file that is not what the manifest says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from s8lib.models.weights import CONFIG, SAFETENSORS
from s8lib.run.folder import KEEP, differences
from s8lib.run.save import PARTIAL, digest, holds, identity, replacing

MANIFESTS = ("manifest.json", "manifest.copy.json")  # alike; the first is what a RunFolder reads
BEST = ("best", "best.new")  # the second only while the first holds the weights that count
NOTHING: dict[str, Any] = {"sequence": 0, "checkpoints": {}, "best": None, "identity": None, "files": {}}
CHUNK = 4 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


class DriveFolder:
    """The complete saves of a run on a Drive. Every method may raise OSError, whatever is wrong with the Drive.

    Its manifest is a RunFolder's with the other `files` {name: {bytes, sha256}}, a `sequence` number, which is 0
    where nothing was ever saved, and in the file a `sha256` of it all.
    """

    # What touches the Drive goes through `open` and `os` in this file: the tests put a misbehaving Drive there.

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = NOTHING  # as last read or written
        self._whole = ""  # the one of MANIFESTS that is known to hold it
        self._seen: dict[str, dict[str, Any]] = {}  # size and sha256 of files as last read, by name

    def read(self) -> dict[str, Any]:
        """The newest manifest that is whole."""
        before, self.manifest, self._whole = self.manifest, NOTHING, ""
        if self.path.name in os.listdir(self.path.parent):  # fails where the Drive is gone
            for name in MANIFESTS:
                with contextlib.suppress(FileNotFoundError), open(self.path / name, "rb") as file:
                    found = _unseal(file.read())
                    if found and found["sequence"] > self.manifest["sequence"]:
                        self.manifest, self._whole = found, name
            if not self._whole and self._names("checkpoints"):
                raise OSError(errno.EIO, "it holds checkpoints, but no manifest that is whole")
        if self.manifest != before:
            self._seen.clear()  # what was written may have vanished, or someone else has written
        return self.manifest

    def copy(self, source: Path, local: dict[str, Any]) -> None:
        """Bring the newest save of the run folder `source`, whose manifest is `local`, onto the Drive."""
        try:
            for folder in (self.path, self.path / "checkpoints"):  # not their parent, which a mount must bring
                _make_folder(folder)
            self.read()
            self._check_that_it_may_change(local)
            self._commit()  # a first one at once, so that checkpoints without a manifest always mean damage
            while True:
                try:
                    self._send_save(source, local)
                    break
                except OSError as error:
                    if error.errno not in FULL or not self._make_room():
                        raise
            self._free_the_rest()
        except OSError:
            self._seen.clear()  # what was written may vanish with the connection
            raise

    def receive(self, name: str, target: Path, entry: dict[str, Any]) -> bool:
        """Copy a file from the Drive to `target`, in one piece, if it is what its entry says."""
        try:
            with open(self.path / name, "rb") as source, replacing(target) as partial:
                with partial.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
                if not holds(partial, entry):
                    raise _NotWhatItSays
        except (FileNotFoundError, _NotWhatItSays):
            return False
        self._seen[name] = _content(entry)
        return True

    def place_of_best(self, best: dict[str, Any] | None) -> str | None:
        """The one of BEST that holds these weights and their config."""
        if best is None:
            return None
        parts = {CONFIG: best["config"], SAFETENSORS: best}
        holding = (place for place in BEST if all(self._holds(f"{place}/{n}", e) for n, e in parts.items()))
        return next(holding, None)

    def _check_that_it_may_change(self, local: dict[str, Any]) -> None:
        """A resume has done the same, unless it could not read the Drive."""
        differing = differences(self.manifest["identity"], local["identity"])
        if differing:
            raise OSError(errno.EEXIST, f"{self.path} holds another run: {differing}")
        here = newest_first(local)[0][1]["epoch"]
        for name, entry in newest_first(self.manifest):
            if entry["epoch"] > here and self._holds(f"checkpoints/{name}", entry):
                raise OSError(errno.EEXIST, f"{self.path} holds {name}: start again to go on from it")

    def _send_save(self, source: Path, local: dict[str, Any]) -> None:
        """Everything of the newest save that is not there yet, each thing before the manifest that names it."""
        name, newest = newest_first(local)[0]
        self._send(source / "checkpoints" / name, f"checkpoints/{name}", newest)
        older = [item for item in self._still_there() if item[1]["epoch"] < newest["epoch"]]
        checkpoints = dict(reversed([(name, newest), *older][:KEEP]))
        files = {path.name: self._send(path, path.name) for path in _small_files(source)}
        changes = {"checkpoints": checkpoints, "identity": local["identity"], "files": files}
        best = local["best"]
        if best and any(entry["epoch"] == best["epoch"] for entry in checkpoints.values()):
            self._commit(**changes)  # already: until the best weights are there, that checkpoint has them
        if best and holds(source / "best" / SAFETENSORS, best):
            best = best | {"config": identity(source / "best" / CONFIG)}
            self._send_best(source / "best", best)
            changes["best"] = best
        self._commit(**changes)

    def _send_best(self, source: Path, best: dict[str, Any]) -> None:
        """New weights never take the place of those that the manifest on the Drive names."""
        place = BEST[0]
        if self.place_of_best(best) != place and self.place_of_best(self.manifest["best"]) == place:
            place = BEST[1]
        _make_folder(self.path / place)
        self._send(source / CONFIG, f"{place}/{CONFIG}", best["config"])
        self._send(source / SAFETENSORS, f"{place}/{SAFETENSORS}", best)

    def _send(self, source: Path, name: str, entry: dict[str, Any] | None = None) -> dict[str, Any]:
        """Copy a file, unless it is there, and verify the copy against `entry`, by default the source itself."""
        with source.open("rb") as file:  # stays the same file if another takes its name meanwhile
            entry = entry or digest(file)
            if not self._holds(name, entry):
                file.seek(0)
                self._write(name, file, entry)
        return entry

    def _commit(self, **changes: Any) -> None:
        """Write the manifest with what has changed in it."""
        manifest = self.manifest | changes
        if manifest == self.manifest and self._whole:
            return
        manifest["sequence"] += 1
        text = _seal(manifest)
        entry = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        for name in sorted(MANIFESTS, key=lambda name: name == self._whole):  # last the only one that is whole
            self._write(name, io.BytesIO(text), entry)
            self.manifest, self._whole = manifest, name

    def _write(self, name: str, source: BinaryIO, entry: dict[str, Any]) -> None:
        self._seen.pop(name, None)
        with open(self.path / name, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
            file.flush()
            os.fsync(file.fileno())
        if not self._holds(name, entry):
            raise OSError(errno.EIO, f"{name} reads back as something else than was written")

    def _holds(self, name: str, entry: dict[str, Any]) -> bool:
        """Whether the Drive has this very file; it is read only if it was not yet."""
        if not self._has(name, entry):
            return False
        if name not in self._seen:
            with open(self.path / name, "rb") as file:
                self._seen[name] = digest(file)
        return self._seen[name] == _content(entry)

    def _has(self, name: str, entry: dict[str, Any]) -> bool:
        """Whether the Drive has a file of this name and size."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path / name).st_size == entry["bytes"]
        return False

    def _still_there(self) -> list[tuple[str, dict[str, Any]]]:
        """The checkpoints that the manifest names, newest first, less those that are gone or cut short."""
        named = newest_first(self.manifest)
        return [(name, entry) for name, entry in named if self._has(f"checkpoints/{name}", entry)]

    def _names(self, folder: str) -> list[str]:
        return os.listdir(self.path / folder) if folder in os.listdir(self.path) else []

    def _free_the_rest(self) -> None:
        """Free checkpoints that the manifest does not name, and the other place of best."""
        for name in self._names("checkpoints"):
            if re.fullmatch(r"epoch_\d+\.pt", name) and name not in self.manifest["checkpoints"]:
                self._free(f"checkpoints/{name}")
        place = self.place_of_best(self.manifest["best"])
        for other in BEST:
            if place and other != place and other in os.listdir(self.path):
                for name in self._names(other):
                    self._free(f"{other}/{name}")
                os.rmdir(self.path / other)

    def _make_room(self) -> bool:
        """On a full Drive, give up what was being written and the oldest checkpoint, if a newer one is intact."""
        self._free_the_rest()
        checkpoints = self._still_there()
        if not any(self._holds(f"checkpoints/{name}", entry) for name, entry in checkpoints[:-1]):
            return False
        self._free(f"checkpoints/{checkpoints[-1][0]}")
        return True

    def _free(self, name: str) -> None:
        """Empty a file, then delete it: the Trash counts towards the quota."""
        self._seen.pop(name, None)
        with open(self.path / name, "wb"):
            pass
        os.unlink(self.path / name)


class _NotWhatItSays(Exception):
    """A file is not the one that its entry describes."""


def newest_first(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The checkpoints that a manifest names, with their entries."""
    return sorted(manifest["checkpoints"].items(), key=lambda item: item[1]["epoch"], reverse=True)


def _make_folder(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)


def _small_files(run: Path) -> list[Path]:
    """What lies in a run folder itself: log, recipe, environment, reports."""
    names = (path for path in sorted(run.iterdir()) if path.is_file() and path.name not in MANIFESTS)
    return [path for path in names if not (path.name.startswith(".") or path.name.endswith(PARTIAL))]


def _content(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("bytes", "sha256")}


def _seal(manifest: dict[str, Any]) -> bytes:
    text = json.dumps(manifest, indent=2)
    return json.dumps(manifest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=2).encode()


def _unseal(text: bytes) -> dict[str, Any] | None:
    """The manifest in a file that `_seal` wrote; None if a byte of it is missing or changed."""
    with contextlib.suppress(ValueError):
        manifest = json.loads(text)
        if isinstance(manifest, dict):
            if not manifest.keys() & {"sequence", "sha256"}:  # a RunFolder's own: its save is not to be undone
                raise OSError(errno.EEXIST, "a run has trained in this very folder: go on with it there")
            manifest.pop("sha256", None)
            return manifest if _seal(manifest) == text else None
    return None
