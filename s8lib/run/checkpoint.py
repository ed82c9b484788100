"""The epoch log, and the checkpoint: the log with all else that changes and does not follow from the epoch."""

import csv
import dataclasses
import pickle
import struct
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.utils import _pytree as pytree

from s8lib.run.save import RunError
from s8lib.validation import one_line, refusing, user_path


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Epoch:
    """One row of the epoch log. Accuracies are percent, losses nats, epochs count from 1.

    `lr` is the rate of the epoch's last step. `train_loss` and `train_acc` are those of the augmented, mixed-up
    batches while training, weighted by MixUp's lambda: not comparable with the test columns. `test_loss` has no
    label smoothing. `best_acc` is the best so far of the accuracy that selects: `holdout_acc` where images are
    held out, else `test_acc`. `images_per_s` is training only; `seconds` the whole epoch, evaluation included.
    """

    epoch: int
    phase: int
    lr: float
    dropout: float
    mixup_alpha: float
    augmentation: str
    train_loss: float
    train_acc: float
    test_loss: float
    test_acc: float
    test_top5: float
    best_acc: float
    images_per_s: float
    seconds: float
    holdout_acc: float | None = None

    @property
    def selection_acc(self) -> float:
        """The accuracy that chooses the best epoch."""
        return self.test_acc if self.holdout_acc is None else self.holdout_acc


COLUMNS = tuple(field.name for field in dataclasses.fields(Epoch) if field.name != "holdout_acc")


class EpochLog(list[Epoch]):
    """The rows of a run, in order: `log[-1]` is the final epoch, `log.best` the selected one."""

    @property
    def best(self) -> Epoch:
        """The first epoch with the highest selection accuracy.

        Raises:
            ValueError: if there is no epoch yet.
        """
        return max(self, key=lambda row: row.selection_acc)

    @property
    def chosen_on(self) -> str:
        """What chooses the best epoch, in words for people."""
        return selector(self[0].holdout_acc is not None)

    @property
    def minutes(self) -> float:
        """What all epochs took together, evaluation included."""
        return sum(row.seconds for row in self) / 60

    def line(self, epochs: int) -> str:
        """The last epoch, of a run of `epochs`, in a line that a notebook does not wrap, in columns."""
        row, best = self[-1], f"{self.best.epoch:<{len(str(epochs))}}"
        return (
            f"epoch {row.epoch:3d}/{epochs}  lr {row.lr:.4f}  train {row.train_loss:.3f} {row.train_acc:6.2f}%  "
            f"test {row.test_loss:6.3f} {row.test_acc:6.2f}%  best {self.best.test_acc:6.2f}% @{best}"
        )

    def summary(self) -> str:
        """Final and best epoch in one line, which says what best was chosen on and a notebook does not wrap."""
        final, best = self[-1], self.best
        return (
            f"final epoch {final.epoch}: {final.test_acc:.2f}% test top-1; "
            f"best epoch {best.epoch}: {best.test_acc:.2f}%, chosen on {self.chosen_on}; "
            f"{self.minutes:.1f} min"
        )

    def to_csv(self) -> str:
        """The table as text, its fractions in six digits: enough to tell an accuracy from that of one image more.

        `holdout_acc` is the last column where images are held out.
        """
        columns = COLUMNS + (("holdout_acc",) if self and self[0].holdout_acc is not None else ())
        rows = ([getattr(row, name) for name in columns] for row in self)
        texts = ([f"{value:.6g}" if isinstance(value, float) else str(value) for value in row] for row in rows)
        return "".join(",".join(row) + "\n" for row in (columns, *texts))

    @classmethod
    def read(cls, path: str | Path) -> "EpochLog":
        """Read `epoch_log.csv` (rounded as written).

        Raises:
            ValueError: naming the file, if it is not an epoch log.
        """
        kinds = {"epoch": int, "phase": int, "augmentation": str}
        try:
            with open(user_path(path), encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                table = list(reader)
            if tuple(reader.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
                raise ValueError(f"its first line should be {','.join(COLUMNS)}")
            return cls(
                Epoch(**{name: kinds.get(name, float)(text) for name, text in row.items()}) for row in table
            )
        except (TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path} is not an epoch log: {error}") from error


def selector(held_out: bool) -> str:
    """What chooses the best epoch, in words for people."""
    return "held-out training images" if held_out else "the test set itself, which flatters it"


@dataclass(config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class Checkpoint:
    """Everything on the CPU, in primitives and tensors, so that it loads with `weights_only=True`.

    Attributes:
        identity: the recipe, the model and the data of the run; see `run.save.identity_of`.
        model, optimizer, scaler: their state dicts; the scaler's is empty where no loss is scaled.
        log: the rows of all epochs so far, at full precision; a copy of what is given.
        arithmetic: what the last bits depend on; see `machine.arithmetic`. Empty in saves of format 1.
    """

    identity: dict[str, dict[str, Any]]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    log: Annotated[EpochLog, BeforeValidator(EpochLog)]
    arithmetic: dict[str, str | int | bool] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.log or [row.epoch for row in self.log] != list(range(1, len(self.log) + 1)):
            raise ValueError("the epochs of its log are not 1, 2, 3, ...")

    @property
    def epoch(self) -> int:
        return len(self.log)

    def save(self, path: Path) -> None:
        """Write it. What the disk refuses is the context of torch's RuntimeError."""
        values = vars(self) | {"log": [dataclasses.asdict(row) for row in self.log]}
        with open(path, "wb") as file:  # torch itself would open it without an OSError to show
            torch.save(values, file)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read one; no pickle is run.

        Raises:
            RunError: it is no checkpoint of this library, or a part of it is missing.
        """
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            with refusing(ValueError):
                return cls(**values | {"log": [Epoch(**row) for row in values.get("log", ())]})
        # All that torch.load answers a stranger's file with, and what one that holds no such dictionary comes to.
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError,
                pickle.UnpicklingError, struct.error) as error:  # fmt: skip
            raise RunError(
                f"{path} is no checkpoint that training can go on from ({one_line(error)}): remove it to go on "
                "from an older one, or use another run folder"
            ) from error

    def size(self) -> int:
        """Bytes that its tensors take."""
        tensors = (leaf for leaf in pytree.tree_leaves([self.model, self.optimizer]) if isinstance(leaf, Tensor))
        return sum(tensor.nbytes for tensor in tensors)


def snapshot(states: Any) -> Any:
    """Nested states with a copy of each tensor on the CPU, which training does not change any more."""
    devices = {leaf.device for leaf in pytree.tree_leaves(states) if isinstance(leaf, Tensor)}
    # Pinned, where they come from a GPU.
    copies = pytree.tree_map_only(Tensor, lambda t: t.detach().to("cpu", non_blocking=True, copy=True), states)
    for device in devices - {torch.device("cpu")}:
        torch.accelerator.synchronize(device)  # once for all of them
    return copies
