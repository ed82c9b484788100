"""What a run left on this disk, read: its manifest, its log, its recipe, its best weights. Nothing is changed."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s8lib.data.cifar100 import Cifar100
from s8lib.machine.progress import tell
from s8lib.recipe import Recipe
from s8lib.run import save as saves
from s8lib.run.checkpoint import Checkpoint, EpochLog
from s8lib.run.save import CHECKPOINT, CONFIG, LOG, MANIFEST, WEIGHTS, Manifest, RunError, holds, places
from s8lib.validation import check, user_path


class RunReader:
    """The reading half of a `RunFolder`; it may be used while another process trains there."""

    def __init__(self, path: str | Path, say: Callable[[str], None] = tell) -> None:
        self.path = user_path(path)
        self.say = say
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"

    def manifest(self) -> Manifest:
        """What was completely saved.

        Raises:
            RunError: it cannot be read, or names nothing beside files that only a save leaves.
        """
        path, manifest = self.path / MANIFEST, Manifest()
        try:
            traces = (*self._on_disk().values(), self.path / WEIGHTS, self.path / LOG)
            left = [trace for trace in traces if trace.exists()]
            manifest, problem = Manifest.unseal(path.read_bytes()), "names no checkpoint"
        except FileNotFoundError:
            problem = "is missing"
        except RunError as error:
            raise RunError(f"{self.path} cannot be gone on with: {error}") from None
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}): see to it, or name another run") from None
        except ValueError as error:
            problem, left = f"cannot be read ({error})", [self.path]
        if left and not manifest.checkpoints:
            raise RunError(
                f"{path} {problem}, but {left[-1]} is there, and a run never starts over silently: bring the file "
                "back, or start in another run folder"
            )
        return manifest

    def log(self) -> EpochLog:
        """The rows of all epochs that are completely saved.

        They come from `epoch_log.csv` or, where that is not what was saved, from the newest checkpoint.

        Raises:
            RunError: there is no such epoch, or neither can be read.
        """
        manifest, rows = self._finished(), EpochLog()
        content, path = manifest.files.get(LOG), self.find(LOG)
        with contextlib.suppress(OSError, ValueError):
            rows = EpochLog(EpochLog.read(path)[: manifest.epoch])  # format 1: a kill may leave one row more
        if len(rows) == manifest.epoch and (content is None or holds(path, content)):
            return rows
        if newest := self._newest_intact(manifest):
            return Checkpoint.load(self.find(manifest.checkpoints[newest])).log
        if len(rows) == manifest.epoch:
            return rows
        raise RunError(f"{path} is damaged, and no checkpoint is left to restore it from: bring it back")

    def recipe(self) -> Recipe:
        """The recipe that the run is trained by.

        Raises:
            RecipeError: it cannot be read.
        """
        identity = self.manifest().identity
        return Recipe.from_dict(identity["recipe"]) if identity else Recipe.load(self.path / "recipe.json")

    def sessions(self) -> list[dict[str, Any]]:
        """What `environment.json` knows of the machines, one entry a start or resume; none that is damaged."""
        found, counts = self.read_json("environment.json", default=[]), ("from_epoch", "test_images")
        found = [entry for entry in found if isinstance(entry, dict)]
        return [one for one in found if all(type(n := one.get(name, 1)) is int and 0 < n < 1e9 for name in counts)]

    def best_weights(self) -> tuple[int, Path]:
        """The best epoch and the folder with its `config.json` and `model.safetensors`, for `from_pretrained`.

        Raises:
            RunError: there are none, or they are damaged.
        """
        manifest, weights = self._finished(), self.find(WEIGHTS)
        intact = [holds(self.find(name), content) for name, content in manifest.best().items()]
        if not manifest.best_epoch or not all(intact) or not weights.with_name(Path(CONFIG).name).is_file():
            raise RunError(
                f"{self.best} is damaged or incomplete (it is not what {self.path / MANIFEST} says): the command "
                "that trained the run restores it, if the checkpoint of that epoch is still there"
            )
        return manifest.best_epoch, weights.parent

    def checkpoint(self, epoch: int) -> Checkpoint | None:
        """The checkpoint of `epoch`, if it is still here and intact."""
        manifest = self.manifest()
        name = manifest.checkpoints.get(epoch)
        path = name and self.find(name)
        return Checkpoint.load(path) if name and path and holds(path, manifest.files[name]) else None

    def find(self, name: str) -> Path:
        """Where a file of the save lies: under its new name while it is not in its place yet."""
        content, (path, *others) = self.manifest().files.get(name), [self.path / place for place in places(name)]
        others = [other for other in others if other.is_file()]
        if not content or not others or holds(path, content):
            return path
        return next((other for other in others if holds(other, content)), path)

    @property
    def data_fingerprint(self) -> str | None:
        """`Cifar100.fingerprint` of what the run is trained on, if it is known."""
        identity = self.manifest().identity
        return identity["data"].get("sha256") if identity else None

    def refuse_other_data(self, data: Cifar100) -> None:
        """Raise RunError if the run was trained on other data."""
        if self.data_fingerprint not in (None, data.fingerprint()):
            own = (self.sessions() or [{}])[-1].get("data", "other data")
            raise RunError(
                f"{self.path} was trained on {own}, not on {data.source}: name its own data with --data or, in a "
                "notebook, as DATA; to train on this, take another run folder"
            )

    def small_files(self) -> list[Path]:
        """What lies in the folder itself beside the save: recipe, environment, reports."""
        files = (path for path in sorted(self.path.iterdir()) if path.is_file() and path.suffix != saves.PARTIAL)
        ours = (MANIFEST, "manifest.copy.json", LOG)
        return [path for path in files if path.name not in ours and re.fullmatch(saves.FILE_NAME, path.name)]

    def read_json(self, name: str, default: Any) -> Any:
        """The JSON file `name` of the folder, one that informs; `default` if there is none, or it is damaged."""
        try:
            return check(type(default), (self.path / name).read_bytes(), ValueError)
        except FileNotFoundError:
            return default
        except (OSError, ValueError) as problem:
            self.say(f"{self.path / name} is damaged ({problem}): it is begun anew")
            return default

    def _finished(self) -> Manifest:
        manifest = self.manifest()
        if not manifest.epoch:
            what = "holds no finished epoch" if self.path.is_dir() else "is no folder"
            raise RunError(f"{self.path} {what}: train there first")
        return manifest

    def _on_disk(self) -> dict[int, Path]:
        """Checkpoints in their place, by epoch, whoever put them there."""
        found = (CHECKPOINT.fullmatch(f"checkpoints/{path.name}") for path in self.checkpoints.glob("*.pt"))
        return dict(sorted((int(match[1]), self.path / match[0]) for match in found if match))

    def _newest_intact(self, manifest: Manifest) -> int:
        for epoch, name in manifest.checkpoints.items():
            if holds(self.find(name), manifest.files[name]):
                return epoch
            self.say(f"{self.path / name} is damaged or missing (it is not what the manifest says): passed over")
        return 0
