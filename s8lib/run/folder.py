"""The run folder: all that a run leaves, and all that a resume needs. It knows files, not training.

A save is complete when `manifest.json` names it, with sizes and sha256; until then it never happened. So a kill
at any moment leaves the last complete save, and a damaged file is noticed and passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from s8lib.data.cifar100 import Cifar100
from s8lib.models.weights import SAFETENSORS
from s8lib.recipe import Recipe
from s8lib.run.log import EpochLog
from s8lib.run.save import PARTIAL, holds, identity, replacing, sync

KEEP = 5  # checkpoints, counted by what is on disk


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message says what to do. The run in it is unchanged."""


class Mirror(Protocol):
    """Keeps complete saves a second time, where things may fail; `run.drive` has one. Only `fetch` may raise."""

    def begin(self, run: RunFolder) -> None:
        """Start copying the newest save."""

    def wait(self, run: RunFolder) -> None:
        """Return when the files of `run` may change again; tell of a copy that failed."""

    def sync(self, run: RunFolder) -> bool:
        """Copy what is new, wait for it, and tell what is there; whether that is everything."""

    def fetch(self, run: RunFolder, newer_than: int | None) -> Path | None:
        """Bring the newest save that verifies, if it is of a later epoch; its checkpoint here."""


class RunFolder:
    """A run's folder, made when first written to.

    Args:
        path: the folder.
        say: takes one line for people at a time.
        mirror: keeps the complete saves a second time.
    """

    def __init__(self, path: str | Path, say: Callable[[str], None] = print, mirror: Mirror | None = None) -> None:
        self.path = Path(path)
        self.say = say
        self.mirror = mirror
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self._new_best = self.path / "best.new"
        self._manifest = self.path / "manifest.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one training process; the lock goes with the process, however it ends.

        Leaving it in peace brings the mirror up to date.

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
                self.sync()
        except Timeout:
            raise RunError(f"another process is training in {self.path}: wait for it or stop it") from None

    def sync(self) -> bool:
        """Bring the mirror, if there is one, up to date and tell what it holds; whether that is everything."""
        return self.mirror is None or self.mirror.sync(self)

    def manifest(self) -> dict[str, Any]:
        """What was completely saved: `checkpoints` {name: {epoch, bytes, sha256}}, `best`, `identity`.

        Raises:
            RunError: if the file is damaged, or is missing beside checkpoints.
        """
        try:
            manifest = json.loads(self._manifest.read_text(encoding="utf-8"))
            return {
                "checkpoints": dict(manifest["checkpoints"]),
                "best": manifest["best"],
                "identity": manifest.get("identity"),
            }
        except FileNotFoundError:
            if not (self._on_disk() or self.best.exists() or (self.path / "epoch_log.csv").exists()):
                return {"checkpoints": {}, "best": None, "identity": None}
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
            state: primitives and tensors only, so that it loads with `weights_only=True`; its `identity`, if
                any, tells one run from another.
            save_best: writes `config.json` and `model.safetensors` into the folder it is given.
        """
        if self.mirror:
            self.mirror.wait(self)
        manifest = self.manifest()
        self._settle_best(manifest)
        name = f"epoch_{epoch:03d}.pt"
        with replacing(self.checkpoints / name) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # torch's word for a full disk, among others
                raise OSError(f"cannot write {self.checkpoints / name}: {str(error).splitlines()[0]}") from error
        manifest["checkpoints"][name] = {"epoch": epoch, **identity(self.checkpoints / name)}
        manifest["identity"] = state.get("identity")
        if save_best:
            manifest["best"] = self._write_new_best(epoch, save_best)
        self.write_text("epoch_log.csv", epoch_log)
        on_disk, listed = self._on_disk(), manifest["checkpoints"]
        manifest["checkpoints"] = {path.name: listed[path.name] for path in on_disk[-KEEP:] if path.name in listed}
        self._write_manifest(manifest)  # from here on, this save happened
        self._settle_best(manifest)
        for path in on_disk[:-KEEP]:
            path.unlink(missing_ok=True)
        if self.mirror:
            self.mirror.begin(self)

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
        newest = self._newest_intact(manifest["checkpoints"])
        if self.mirror:
            newest = self.mirror.fetch(self, newer_than=_epoch_of(newest) if newest else None) or newest
        if newest:
            return torch.load(newest, map_location="cpu", weights_only=True)
        if manifest["checkpoints"]:
            raise RunError(
                f"none of the checkpoints that {self._manifest} names is intact: bring one back into "
                f"{self.checkpoints}, or start in another run folder"
            )
        return None

    def adopt(self, name: str, entry: dict[str, Any], identity: dict[str, Any] | None) -> None:
        """Name in the manifest a checkpoint that was brought here from elsewhere and verified."""
        manifest = self.manifest()
        manifest["checkpoints"][name] = entry
        manifest["identity"] = identity
        self._write_manifest(manifest)

    def checkpoint(self, epoch: int) -> dict[str, Any] | None:
        """The checkpoint of `epoch` on the CPU, if it is still here and intact."""
        path = self.checkpoints / f"epoch_{epoch:03d}.pt"
        entry = self.manifest()["checkpoints"].get(path.name)
        if entry and holds(path, entry):
            return torch.load(path, map_location="cpu", weights_only=True)
        return None

    def last_epoch(self) -> int | None:
        """The epoch of the newest complete checkpoint."""
        return max((entry["epoch"] for entry in self.manifest()["checkpoints"].values()), default=None)

    def best_weights(self) -> tuple[int, Path]:
        """The best epoch and the folder with its `config.json` and `model.safetensors`, for `from_pretrained`.

        Only reads, so it may be called while another process trains here.

        Raises:
            RunError: if there are none yet, or they are damaged.
        """
        best = self.manifest()["best"]
        if best is None:
            raise RunError(f"{self.path} holds no finished epoch: train there first")
        for folder in (self.best, self._new_best):  # the latter: named in the manifest, not yet moved
            if holds(folder / SAFETENSORS, best):
                return best["epoch"], folder
        raise RunError(
            f"{self.best / SAFETENSORS} is damaged or missing (its sha256 is not the one in {self._manifest}): "
            "going on with the run restores it if the checkpoint of that epoch is still there"
        )

    def log(self) -> EpochLog:
        """The epochs that were completely saved; a damaged log comes from the newest checkpoint.

        Raises:
            RunError: if there are none, or neither the log nor that checkpoint is intact.
        """
        last = self.last_epoch()
        if last is None:
            raise RunError(f"{self.path} holds no finished epoch: train there first")
        try:
            rows = EpochLog.read(self.path / "epoch_log.csv").rows[:last]
            if len(rows) < last:
                raise ValueError(f"{self.path / 'epoch_log.csv'} holds {len(rows)} of {last} epochs")
        except (OSError, ValueError) as error:
            if (checkpoint := self.checkpoint(last)) is None:
                raise RunError(f"{error}: bring the file back") from error
            return EpochLog.from_dicts(checkpoint["log"])
        return EpochLog(rows)

    def recipe(self) -> Recipe:
        """What is trained here: the manifest's recipe, else that of `recipe.json`."""
        identity = self.manifest()["identity"] or {}
        return (
            Recipe.from_dict(identity["recipe"])
            if "recipe" in identity
            else Recipe.load(self.path / "recipe.json")
        )

    def sessions(self) -> list[dict[str, Any]]:
        """`environment.json`: a dict for each start and resume; empty, and told, where the file is damaged."""
        try:
            sessions = self.read_json("environment.json", default=[])
            if not all(isinstance(session, dict) for session in sessions):
                raise ValueError("it is no list of sessions")
        except (ValueError, TypeError) as error:
            self.say(f"{self.path / 'environment.json'} is damaged ({error}): the machines are not known")
            return []
        return sessions

    def refuse_other_data(self, data: Cifar100) -> None:
        """Raise RunError if the run was trained on other data than `data`, as far as its manifest knows."""
        identity = self.manifest()["identity"]
        if identity is not None and identity["data"]["sha256"] != data.fingerprint():
            raise RunError(
                f"{self.path} was trained on other data than {data.source}: measure it on the data it knows"
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

    def _newest_intact(self, listed: dict[str, Any]) -> Path | None:
        for path in reversed(self._on_disk()):
            if path.name not in listed:
                self.say(f"{path} was never completely saved: passed over")
            elif holds(path, listed[path.name]):
                return path
            else:
                self.say(f"{path} is damaged (its sha256 is not the manifest's): passed over")
        return None

    def _write_new_best(self, epoch: int, write: Callable[[Path], None]) -> dict[str, Any]:
        shutil.rmtree(self._new_best, ignore_errors=True)
        self._new_best.mkdir()
        write(self._new_best)
        for path in (*self._new_best.iterdir(), self._new_best):
            sync(path)
        return {"epoch": epoch, **identity(self._new_best / SAFETENSORS)}

    def _settle_best(self, manifest: dict[str, Any]) -> None:
        """Move `best.new` into place if the manifest names it; if a kill came before that, drop it."""
        if not self._new_best.exists():
            return
        new = self._new_best / SAFETENSORS
        if manifest["best"] and holds(new, manifest["best"]):
            self.best.mkdir(exist_ok=True)
            for path in sorted(self._new_best.iterdir()):  # config.json before model.safetensors
                os.replace(path, self.best / path.name)
        shutil.rmtree(self._new_best)


def differences(there: dict[str, Any] | None, here: dict[str, Any] | None) -> str:
    """How the identities of two runs differ; "" if they are one run.

    A recipe's name is no difference, nor is a value that one of the two does not know: another version wrote it.
    """
    there, here = there or {}, here or {}
    return "; ".join(
        f"{part} {key} is {there[part][key]!r} there and {here[part][key]!r} here"
        for part in sorted(there.keys() & here.keys())
        for key in sorted(there[part].keys() & here[part].keys())
        if there[part][key] != here[part][key] and (part, key) != ("recipe", "name")
    )


def how_to_go_on(run: RunFolder | None) -> str:
    """What someone whose run has just stopped needs to know, as the end of a sentence."""
    last = run.last_epoch() if run else None
    if run is None or last is None:
        return "no checkpoint was saved yet"
    return f"the last good checkpoint is epoch {last} in {run.path}, and the same command goes on from there"


def _epoch_of(path: Path) -> int:
    return int(path.stem.removeprefix("epoch_"))
