"""The epoch log: one row an epoch, kept in every checkpoint and written whole to `epoch_log.csv`."""

import csv
import dataclasses
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from s8lib.validation import user_path


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Epoch:
    """One row. Accuracies are percent, losses nats, epochs count from 1.

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
            f"test {row.test_loss:6.3f} {row.test_acc:6.2f}%  best {row.best_acc:6.2f}% @{best}"
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
