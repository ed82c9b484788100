"""A machine whose run gains epochs the way `train` does it, without training: epoch n's weights say n."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

import s8lib as s8
from s8lib.run.checkpoint import Checkpoint
from s8lib.run.copies import Copies
from s8lib.run.save import identity_of
from tests.runs import RECIPE


def row(epoch: int, accuracy: float = 1.0, best: float = 1.0) -> s8.Epoch:
    return s8.Epoch(epoch, 1, 0.1, 0.0, 0.0, "full", 1.0, 50.0, 1.0, accuracy, 90.0, best, 100.0, 1.0)


class Machine:
    """A run folder on the disk `disk`, with copies in `copies`; `lines` is what was said.

    Its best epochs are 1, 2, 3, 7, 11, 15, 19, 23, unless `best_at` says otherwise.
    """

    def __init__(
        self,
        disk: Path,
        copies: Iterable[Copies] = (),
        recipe: s8.Recipe = RECIPE,
        lines: list[str] | None = None,
        data: str = "data",
    ) -> None:
        self.lines: list[str] = [] if lines is None else lines
        self.training = False
        self.run = s8.RunFolder(disk, self.lines.append, copies)
        self.identity = identity_of(recipe, {"name": "wrn-10-1", "num_classes": 100}, data, 0)
        self.model, self.log = nn.Linear(1, 2500), s8.EpochLog()  # small: thousands of saves are made of it
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        self.run.write_json("recipe.json", recipe.to_dict())
        self.run.write_json("environment.json", [{"device": "none"}])

    @property
    def path(self) -> Path:
        return self.run.path

    def save(self, *epochs: int, best_at: Iterable[int] | None = None) -> Machine:
        """Save these epochs, which may skip some."""
        for epoch in epochs:
            is_best = epoch in best_at if best_at is not None else epoch < 3 or epoch % 4 == 3
            while len(self.log) < epoch:
                n = len(self.log) + 1
                better = n / 2 + 100 * (n == epoch and is_best and best_at is not None)
                accuracy = n if best_at is None and n % 4 == 3 else better
                best = max([accuracy, *(row.best_acc for row in self.log)])
                self.log.append(row(n, accuracy, best))
            if not self.training:
                self.run.claim()
                self.training = True
            for parameter in self.model.parameters():
                nn.init.constant_(parameter, epoch)
            state = Checkpoint(self.identity, self.model.state_dict(), {}, {}, self.log)
            self.run.save(state, self.write_best if is_best else None)
            self.run.copy()
        return self

    def write_best(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        save_file(self.model.state_dict(), folder / "model.safetensors")

    def until(self, epoch: int) -> Machine:
        """Save every epoch up to this one."""
        return self.save(*range(len(self.log) + 1, epoch + 1))

    def resumed(self) -> int | None:
        """The epoch that training would go on from, and its weights are those of that epoch."""
        found = self.run.resume(self.identity)
        if found is None:
            return None
        self.log = found.log
        assert all((tensor == found.epoch).all() for tensor in found.model.values())
        return found.epoch

    def best(self) -> int | None:
        """The epoch of the best weights, and they are those of that epoch."""
        try:
            epoch, folder = self.run.best_weights()
        except s8.RunError:
            return None
        assert all((tensor == epoch).all() for tensor in load_file(folder / "model.safetensors").values())
        assert (folder / "config.json").is_file()
        return epoch

    def problems(self) -> list[str]:
        return [line for line in self.lines if "was not sent" in line or "NOT" in line]


def contents(
    folder: Path, without: Callable[[Path], bool] = lambda path: path.name == ".lock" or ".outgoing" in path.parts
) -> dict[str, str]:
    """sha256 of every file, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not without(path))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
