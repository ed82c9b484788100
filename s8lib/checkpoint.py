"""The run folder: all that a run leaves, and all that a resume needs. It knows files, not training.

A save is complete when `manifest.json` names it, with sizes and sha256; until then it never happened. So a kill
at any moment leaves the last complete save, and a damaged file is noticed and passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from s8lib.weights import SAFETENSORS

PARTIAL = ".partial"  # ends the name of a file that is being written
KEEP = 5  # checkpoints, counted by what is on disk


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message says what to do. The run in it is unchanged."""


class RunFolder:
    """A run's folder, made when first written to.

    Args:
        path: the folder.
        say: takes one line for people at a time.
    """

    def __init__(self, path: str | Path, say: Callable[[str], None] = print) -> None:
        self.path = Path(path)
        self.say = say
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self._new_best = self.path / "best.new"
        self._manifest = self.path / "manifest.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one training process; the lock goes with the process, however it ends.

        Raises:
            RunError: if another process holds it, or the folder cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder {self.path}: {error.strerror}") from error
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise RunError(f"another process is training in {self.path}: wait for it or stop it") from None

    def manifest(self) -> dict[str, Any]:
        """What was completely saved: `checkpoints` {name: {epoch, bytes, sha256}} and `best`, or None.

        Raises:
            RunError: if the file is damaged, or is missing beside checkpoints.
        """
        try:
            manifest = json.loads(self._manifest.read_text(encoding="utf-8"))
            return {"checkpoints": dict(manifest["checkpoints"]), "best": manifest["best"]}
        except FileNotFoundError:
            if not (self._on_disk() or self.best.exists() or (self.path / "epoch_log.csv").exists()):
                return {"checkpoints": {}, "best": None}
            problem = "is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"cannot be read ({type(error).__name__}: {error})"
        raise RunError(
            f"{self._manifest} {problem}, so nothing beside it can be trusted: bring the file back, or start in "
            "another run folder"
        )

    def save(
        self,
        epoch: int,
        state: dict[str, Any],
        epoch_log: str,
        save_best: Callable[[Path], None] | None = None,
    ) -> None:
        """Save the checkpoint of `epoch`, the epoch log (CSV text) and, if given, new best weights.

        Args:
            state: primitives and tensors only, so that it loads with `weights_only=True`.
            save_best: writes `config.json` and `model.safetensors` into the folder it is given.
        """
        manifest = self.manifest()
        self._settle_best(manifest)
        name = f"epoch_{epoch:03d}.pt"
        with replacing(self.checkpoints / name) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # torch's word for a full disk, among others
                raise OSError(f"cannot write {self.checkpoints / name}: {str(error).splitlines()[0]}") from error
        manifest["checkpoints"][name] = {"epoch": epoch, **_identity(self.checkpoints / name)}
        if save_best:
            manifest["best"] = self._write_new_best(epoch, save_best)
        self.write_text("epoch_log.csv", epoch_log)
        on_disk, listed = self._on_disk(), manifest["checkpoints"]
        manifest["checkpoints"] = {path.name: listed[path.name] for path in on_disk[-KEEP:] if path.name in listed}
        self._write_manifest(manifest)  # from here on, this save happened
        self._settle_best(manifest)
        for path in on_disk[:-KEEP]:
            path.unlink(missing_ok=True)

    def save_best(self, epoch: int, write: Callable[[Path], None]) -> None:
        """Replace `best/` by the weights of `epoch`; `write` is `save`'s `save_best`."""
        manifest = self.manifest()
        manifest["best"] = self._write_new_best(epoch, write)
        self._write_manifest(manifest)
        self._settle_best(manifest)

    def resume(self) -> dict[str, Any] | None:
        """The newest checkpoint that verifies, on the CPU, or None in a fresh folder.

        Raises:
            RunError: if checkpoints were saved and none of them verifies: a run never starts over silently.
        """
        manifest = self.manifest()
        if not self._manifest.exists():
            self._write_manifest(manifest)
        self._settle_best(manifest)
        for folder, pattern in ((self.path, "*.json"), (self.path, "*.csv"), (self.checkpoints, "epoch_*.pt")):
            for partial in folder.glob(pattern + PARTIAL):
                partial.unlink()
        listed = manifest["checkpoints"]
        for path in reversed(self._on_disk()):
            if path.name not in listed:
                self.say(f"{path} was never completely saved: passed over")
            elif _holds(path, listed[path.name]):
                return torch.load(path, map_location="cpu", weights_only=True)
            else:
                self.say(f"{path} is damaged (its sha256 is not the manifest's): passed over")
        if listed:
            raise RunError(
                f"none of the checkpoints that {self._manifest} names is intact: bring one back into "
                f"{self.checkpoints}, or start in another run folder"
            )
        return None

    def checkpoint(self, epoch: int) -> dict[str, Any] | None:
        """The checkpoint of `epoch` on the CPU, if it is still here and intact."""
        path = self.checkpoints / f"epoch_{epoch:03d}.pt"
        entry = self.manifest()["checkpoints"].get(path.name)
        if entry and _holds(path, entry):
            return torch.load(path, map_location="cpu", weights_only=True)
        return None

    def last_epoch(self) -> int | None:
        """The epoch of the newest complete checkpoint."""
        return max((entry["epoch"] for entry in self.manifest()["checkpoints"].values()), default=None)

    def best_weights(self) -> tuple[int, Path] | None:
        """The best epoch and the folder with its `config.json` and `model.safetensors`, for `from_pretrained`.

        Only reads, so it may be called while another process trains here.

        Raises:
            RunError: if the weights are damaged.
        """
        best = self.manifest()["best"]
        if best is None:
            return None
        for folder in (self.best, self._new_best):  # the latter: named in the manifest, not yet moved
            if _holds(folder / SAFETENSORS, best):
                return best["epoch"], folder
        raise RunError(
            f"{self.best / SAFETENSORS} is damaged or missing (its sha256 is not the one in {self._manifest}): "
            "going on with the run restores it if the checkpoint of that epoch is still there"
        )

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder in one piece: a reader sees the old text or the new, never half of it."""
        with replacing(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: object) -> None:
        """`write_text` of `value` as JSON."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str, default: Any) -> Any:
        """The JSON file `name` of the folder, or `default` if there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return default

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        self.write_json(self._manifest.name, manifest)

    def _on_disk(self) -> list[Path]:
        found = self.checkpoints.glob("epoch_*.pt")
        return sorted((p for p in found if re.fullmatch(r"epoch_\d+\.pt", p.name)), key=_epoch_of)

    def _write_new_best(self, epoch: int, write: Callable[[Path], None]) -> dict[str, Any]:
        shutil.rmtree(self._new_best, ignore_errors=True)
        self._new_best.mkdir()
        write(self._new_best)
        for path in (*self._new_best.iterdir(), self._new_best):
            _sync(path)
        return {"epoch": epoch, **_identity(self._new_best / SAFETENSORS)}

    def _settle_best(self, manifest: dict[str, Any]) -> None:
        """Move `best.new` into place if the manifest names it; if a kill came before that, drop it."""
        if not self._new_best.exists():
            return
        new = self._new_best / SAFETENSORS
        if manifest["best"] and _holds(new, manifest["best"]):
            self.best.mkdir(exist_ok=True)
            for path in sorted(self._new_best.iterdir()):  # config.json before model.safetensors
                os.replace(path, self.best / path.name)
        shutil.rmtree(self._new_best)


def how_to_go_on(run: RunFolder | None) -> str:
    """What someone whose run has just stopped needs to know, as the end of a sentence."""
    last = run.last_epoch() if run else None
    if run is None or last is None:
        return "no checkpoint was saved yet"
    return f"the last good checkpoint is epoch {last} in {run.path}, and the same command goes on from there"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place, on disk for good, if the block succeeds."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk for good."""
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        return
    with contextlib.suppress(OSError):  # Windows and some network mounts cannot sync a folder; its files are safe
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _identity(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _holds(path: Path, entry: dict[str, Any]) -> bool:
    """Whether `path` is the file that a manifest's entry describes."""
    return path.is_file() and _identity(path).items() <= entry.items()


def _epoch_of(path: Path) -> int:
    return int(path.stem.removeprefix("epoch_"))
