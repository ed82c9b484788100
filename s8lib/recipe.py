"""The recipe: everything that changes in training, as a pure function of the position in training.

Nothing here has state, so nothing about the schedule needs saving and a resumed run cannot be in the wrong
phase. Learning rates follow SGDR (arXiv:1608.03983), MixUp is arXiv:1710.09412.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic.dataclasses
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from s8lib.validation import BadInput, check, read_json, refusing, short, user_path

WHOLE = 1e-6  # cycles: so far from a whole number of them is a rounding error of `stretched`


class RecipeError(BadInput):
    """A recipe that cannot be trained; the message names the field."""


@dataclass(frozen=True)
class Policy:
    """How often (`*_p`, a probability per image) and how far (uniform in plus or minus the range)."""

    flip_p: float = 0.0
    alternating_flips: bool = False  # each image one way in even epochs, the other in odd ones
    affine_p: float = 0.0  # shift, scale and rotate together
    shift: float = 0.0  # fraction of the side, per axis
    whole_pixels: bool = False  # round shifts, so that shifting alone does not blur
    scale: float = 0.0  # about 1, the same for both axes
    rotate: float = 0.0  # degrees, about the centre
    cutout_p: float = 0.0
    cutout_size: int = 0  # pixels, the side of the hole
    brightness_contrast_p: float = 0.0  # both together
    brightness: float = 0.0  # about 1
    contrast: float = 0.0  # about 1
    hsv_p: float = 0.0  # hue, saturation and value together
    hue: float = 0.0  # OpenCV's 8-bit units, 180 to the circle
    saturation: float = 0.0  # OpenCV's 8-bit units, 0..255
    value: float = 0.0  # OpenCV's 8-bit units, 0..255


# A run remembers the name of its policy, not the values: to change one, add another under a new name.
POLICIES: dict[str, Policy] = {
    "full": Policy(
        flip_p=0.5, affine_p=0.5, shift=0.0625, scale=0.10, rotate=15,
        cutout_p=0.5, cutout_size=8,
        brightness_contrast_p=0.3, brightness=0.2, contrast=0.2,
        hsv_p=0.3, hue=10, saturation=20, value=10,
    ),
    "reduced": Policy(
        flip_p=0.5, affine_p=0.35, shift=0.05, scale=0.07, rotate=10,
        cutout_p=0.35, cutout_size=6,
        brightness_contrast_p=0.2, brightness=0.15, contrast=0.15,
    ),
    # what a run of a few epochs can afford: the usual flip and padded crop
    "light": Policy(flip_p=0.5, affine_p=1.0, shift=0.0625, whole_pixels=True),
    # each image seen both ways in two epochs (arXiv:2404.00498), and moved by -2 to 2 pixels, all equally likely
    "flip-crop": Policy(flip_p=0.5, alternating_flips=True, affine_p=1.0, shift=2.5 / 32, whole_pixels=True),
    "none": Policy(),
}  # fmt: skip


@dataclass(frozen=True)
class Knobs:
    """What the recipe sets at one moment of training."""

    lr: float
    dropout: float
    mixup_alpha: float
    label_smoothing: float
    augmentation: str
    image_size: int


def _file_name(text: str) -> str:
    """Part of the name of a run's folder, on any system, on Drive and on the Hub."""
    if not (text.isprintable() and 1 <= len(text.encode()) <= 100) or re.search(r'^\.|[/\\:*?"<>|]', text):
        raise ValueError("must be a plain file name of 1 to 100 characters, without / and no dot in front")
    return text


def _for_both_phases(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


_T = TypeVar("_T")
Pair = Annotated[tuple[_T, _T], BeforeValidator(_for_both_phases)]
FileName = Annotated[str, AfterValidator(_file_name)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, lt=1)]


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Recipe:
    """A two-phase training recipe; the defaults are the commission's table.

    Phase 1 (`phase1_epochs`): linear warm-up from `lr_start` to `lr_peak` over `warmup_epochs`, inside the
    first cycle of cosine annealing with warm restarts every `cycle_epochs` (T_0), floor `lr_floor`. Phase 2:
    one cosine from the rate at the hand-over down to `lr_final`. Pairs hold the values of phases 1 and 2, and one
    value stands for both. `image_size` (pixels) is the side that training images are shrunk to: a phase of smaller
    images costs less time. `patience` (epochs, None for never) is counted within a cycle: see `out_of_patience`.

    `anneal` "linear" takes the rate in one line from the end of the warm-up to `lr_final` at the end of the run,
    without restarts. `optimizer` "muon" trains convolutions by Muon, with the peak rate `muon_lr` where the others
    have `lr_peak`, and decays linear layers only.

    Raises:
        RecipeError: for a value no run can be trained with; the message names the field.
    """

    name: FileName = "seed-100"
    model: FileName = "wrn-28-10"
    epochs: Epochs = 100
    phase1_epochs: Annotated[int, Field(ge=0)] = 60
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    lr_start: Rate = 0.01
    lr_peak: Annotated[Rate, Field(gt=0)] = 0.1
    lr_floor: Rate = 1e-4
    lr_final: Rate = 1e-5
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    cycle_epochs: Annotated[float, Field(gt=0, le=1e6)] = 25
    anneal: Literal["cosine", "linear"] = "cosine"
    optimizer: Literal["sgd", "muon"] = "sgd"
    muon_lr: Rate = 0.13
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: Rate = 1e-3
    label_smoothing: Share = 0.1
    dropout: Pair[Share] = (0.3, 0.2)
    mixup_alpha: Pair[Annotated[float, Field(ge=0, le=1)]] = (0.2, 0.15)  # 0 turns MixUp off
    augmentation: Pair[str] = ("full", "reduced")
    image_size: Pair[Annotated[int, Field(ge=8, le=32, multiple_of=4)]] = (32, 32)
    patience: Epochs | None = 15

    def __post_init__(self) -> None:
        first, within = min(self.cycle_epochs, self.phase1_epochs), "the first cycle and phase 1"
        if self.anneal == "linear":
            first, within = self.epochs, "the run"
        rare = self.cycle_epochs >= 0.01 or self.phase1_epochs == 0
        for holds, field, what in (
            (self.phase1_epochs <= self.epochs, "phase1_epochs", f"must be within the {self.epochs} epochs"),
            (self.warmup_epochs <= first, "warmup_epochs", f"must end within {within}"),
            (rare, "cycle_epochs", "must be at least 0.01, which is a hundred restarts an epoch"),
            (self.lr_start <= self.lr_peak, "lr_start", "is above lr_peak"),
            (self.lr_floor <= self.lr_peak, "lr_floor", "is above lr_peak"),
            (not self.nesterov or self.momentum > 0, "nesterov", "needs a momentum above 0"),
            (POLICIES.keys() >= {*self.augmentation}, "augmentation", f"must be of {', '.join(POLICIES)}"),
        ):
            if not holds:
                raise ValueError(f"{field} = {short(getattr(self, field))}: {what}")

    def at(self, epoch: float) -> Knobs:
        """The knobs at `epoch`, a float: 0.0 before the first step, `epochs` after the last.

        Raises:
            ValueError: outside 0..epochs.
        """
        if not 0 <= epoch <= self.epochs:
            raise ValueError(f"epoch {epoch} is outside this recipe's 0 to {self.epochs}")
        phase = self.phase(epoch) - 1
        return Knobs(
            lr=self._lr(epoch),
            dropout=self.dropout[phase],
            mixup_alpha=self.mixup_alpha[phase],
            label_smoothing=self.label_smoothing,
            augmentation=self.augmentation[phase],
            image_size=self.image_size[phase],
        )

    def _lr(self, epoch: float) -> float:
        # 1) warm-up: linear, inside the first cycle
        if epoch < self.warmup_epochs:
            return self.lr_start + (self.lr_peak - self.lr_start) * epoch / self.warmup_epochs
        if self.anneal == "linear" and epoch < self.epochs:
            passed = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
            return self.lr_peak + (self.lr_final - self.lr_peak) * passed
        if self.anneal == "linear":  # at the end, which the warm-up may reach
            return self.lr_final
        # 2) phase 1: cosine annealing with warm restarts
        if self.phase(epoch) == 1:
            # At a restart, which may be no float, the cycle is the new one.
            begin = self.cycle_epochs * math.floor(epoch / self.cycle_epochs + 1e-12)
            return _cosine(self.lr_peak, self.lr_floor, (epoch - begin) / self.cycle_epochs)
        # 3) phase 2: one cosine, from the rate phase 1 hands over, which is the peak after whole cycles
        cycles = self.phase1_epochs / self.cycle_epochs
        progress = 0.0 if abs(cycles - round(cycles)) < WHOLE else cycles % 1
        handover = _cosine(self.lr_peak, self.lr_floor, progress)
        return _cosine(handover, self.lr_final, (epoch - self.phase1_epochs) / (self.epochs - self.phase1_epochs))

    def phase(self, epoch: float) -> int:
        """1 or 2: the phase that `epoch` (a float from 0.0) lies in; a recipe may have only one of them."""
        return 1 if epoch < self.phase1_epochs or self.phase1_epochs == self.epochs else 2

    @property
    def restarts(self) -> tuple[float, ...]:
        """The epochs at which the learning rate jumps back to its peak."""
        count = math.ceil(self.phase1_epochs / self.cycle_epochs - WHOLE) if self.anneal == "cosine" else 0
        return tuple(self.cycle_epochs * k for k in range(1, count))

    def out_of_patience(self, accuracy: Sequence[float]) -> bool:
        """Whether to stop, given the selection accuracy (percent) after each epoch so far.

        A warm restart lowers accuracy for longer than `patience`, so only the current cycle counts: its best
        must be `patience` epochs old. Every restart and the phase change start anew. At a high rate one epoch may
        by luck be better than the next fifteen, so means over a third of `patience` are compared.
        """
        if self.patience is None or not accuracy:
            return False
        begin = int(max(t for t in (0, *self.restarts, self.phase1_epochs) if t < len(accuracy)))
        window = max(1, self.patience // 3)
        sums = [sum(accuracy[at : at + window]) for at in range(begin, len(accuracy) - window + 1)]
        return len(sums) > self.patience and len(sums) - 1 - sums.index(max(sums)) >= self.patience

    def stretched(self, factor: float) -> Self:
        """The same recipe with every count of epochs multiplied by `factor`, its curves keeping their shape.

        Counts that have to be whole (run, phase 1, patience) are rounded. Warm-up and cycles then fill phase 1 as
        before; a warm-up to a linear rate fills its part of the run. Where both phases fit, none is lost. Patience
        is never shortened: noise from one epoch to the next does not shrink with the run.
        """
        if not 0 < factor <= 100_000:
            raise RecipeError(f"cannot stretch by {short(factor)}: the factor must be above 0 and at most 100000")
        epochs = max(1, round(self.epochs * factor))
        phase1_epochs = min(epochs, round(self.phase1_epochs * factor))
        if epochs > 1 and 0 < self.phase1_epochs < self.epochs:
            phase1_epochs = min(max(1, phase1_epochs), epochs - 1)
        in_phase = 0 < phase1_epochs < epochs or self.phase1_epochs == self.epochs  # else one epoch is all
        scale = phase1_epochs / self.phase1_epochs if in_phase else factor
        linear = self.anneal == "linear"
        warmup_epochs = _whole(self.warmup_epochs * (epochs / self.epochs if linear else scale))
        name = self.name if epochs == self.epochs else f"{re.sub('-[0-9]+ep$', '', self.name)}-{epochs}ep"
        return dataclasses.replace(
            self,
            name=name,
            epochs=epochs,
            phase1_epochs=phase1_epochs,
            warmup_epochs=min(warmup_epochs, epochs if linear else phase1_epochs),
            cycle_epochs=_whole(self.cycle_epochs * scale),
            patience=self.patience and min(100_000, max(self.patience, round(self.patience * factor))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Primitives only, as JSON holds them (pairs are lists)."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe of `to_dict`.

        Raises:
            RecipeError: for a field that does not exist, or a value that cannot be trained with.
        """
        return cls(**check(Mapping[str, Any], values, RecipeError, "a recipe"))

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """This recipe with some fields replaced, checked like `from_dict`."""
        return dataclasses.replace(self, **settings)

    def save(self, path: str | Path) -> None:
        """Write the recipe as JSON."""
        user_path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a recipe from JSON.

        Raises:
            RecipeError: naming the file and what is wrong in it.
        """
        return read_json(cls, path, RecipeError)


# However a recipe is made, what pydantic finds wrong becomes a RecipeError.
Recipe.__init__ = refusing(RecipeError, known=Recipe.__dataclass_fields__)(Recipe.__init__)  # type: ignore[method-assign]


def _cosine(high: float, low: float, progress: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


def _whole(value: float) -> float:
    value = round(value, 9)
    return int(value) if float(value).is_integer() else value
