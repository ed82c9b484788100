"""The recipe: everything that changes in training, as a pure function of the position in training.

Nothing here has state, so nothing about the schedule needs saving and a resumed run cannot be in the wrong
phase. Learning rates follow SGDR (arXiv:1608.03983), MixUp is arXiv:1710.09412.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RecipeError(ValueError):
    """A recipe that cannot be trained; the message names the field."""


@dataclass(frozen=True)
class Policy:
    """How often (`*_p`, a probability per image) and how far (uniform in plus or minus the range)."""

    flip_p: float = 0.0
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


@dataclass(frozen=True)
class Recipe:
    """A two-phase training recipe; the defaults are the seed's table.

    Phase 1 (`phase1_epochs`): linear warm-up from `lr_start` to `lr_peak` over `warmup_epochs`, inside the
    first cycle of cosine annealing with warm restarts every `cycle_epochs` (T_0), floor `lr_floor`. Phase 2:
    one cosine from the rate at the hand-over down to `lr_final`. Pairs hold the values of phases 1 and 2.
    `image_size` (pixels) is the side that training images are shrunk to: a phase of smaller images costs less
    time. `patience` (epochs, None for never) is counted within a cycle: see `out_of_patience`.

    Raises:
        RecipeError: for a value no run can be trained with; the message names the field.
    """

    name: str = "seed-100"
    model: str = "wrn-28-10"
    epochs: int = 100
    phase1_epochs: int = 60
    batch_size: int = 256
    seed: int = 0
    lr_start: float = 0.01
    lr_peak: float = 0.1
    lr_floor: float = 1e-4
    lr_final: float = 1e-5
    warmup_epochs: float = 5
    cycle_epochs: float = 25
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-3
    label_smoothing: float = 0.1
    dropout: tuple[float, float] = (0.3, 0.2)
    mixup_alpha: tuple[float, float] = (0.2, 0.15)
    augmentation: tuple[str, str] = ("full", "reduced")
    image_size: tuple[int, int] = (32, 32)
    patience: int | None = 15

    def __post_init__(self) -> None:
        _check_types(self)
        at_least_0 = ("seed", "lr_start", "lr_floor", "lr_final", "warmup_epochs", "weight_decay")
        for field in (*at_least_0, "phase1_epochs"):
            _require(getattr(self, field) >= 0, field, getattr(self, field), "must not be negative")
        for field in ("lr_peak", "cycle_epochs", "epochs", "batch_size"):
            _require(getattr(self, field) > 0, field, getattr(self, field), "must be above 0")
        for field in ("momentum", "label_smoothing"):
            _require(0 <= getattr(self, field) < 1, field, getattr(self, field), "must be in [0, 1)")
        _require(
            self.phase1_epochs <= self.epochs,
            "phase1_epochs",
            self.phase1_epochs,
            f"phase 1 is longer than the run of {self.epochs} epochs",
        )
        _require(
            self.warmup_epochs <= min(self.cycle_epochs, self.phase1_epochs),
            "warmup_epochs",
            self.warmup_epochs,
            "the warm-up must end within the first cycle and phase 1",
        )
        _require(self.seed < 2**63, "seed", self.seed, "must be below 2**63")
        _require(self.lr_start <= self.lr_peak, "lr_start", self.lr_start, "is above lr_peak")
        _require(self.lr_floor <= self.lr_peak, "lr_floor", self.lr_floor, "is above lr_peak")
        _require(not self.nesterov or self.momentum > 0, "nesterov", self.nesterov, "needs a momentum above 0")
        for p in self.dropout:
            _require(0 <= p < 1, "dropout", self.dropout, "must be in [0, 1)")
        for alpha in self.mixup_alpha:
            _require(alpha >= 0, "mixup_alpha", self.mixup_alpha, "must not be negative; 0 turns MixUp off")
        for policy in self.augmentation:
            known = ", ".join(POLICIES)
            _require(policy in POLICIES, "augmentation", policy, f"is unknown; there are {known}")
        for side in self.image_size:
            fits = 8 <= side <= 32 and side % 4 == 0
            _require(fits, "image_size", self.image_size, "must be a multiple of 4 pixels from 8 to 32")
        _require(
            self.patience is None or self.patience > 0,
            "patience",
            self.patience,
            "must be above 0, or null for no early stopping",
        )

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
        # 2) phase 1: cosine annealing with warm restarts
        if self.phase(epoch) == 1:
            return _cosine(self.lr_peak, self.lr_floor, epoch % self.cycle_epochs / self.cycle_epochs)
        # 3) phase 2: one cosine, from the rate phase 1 hands over
        handover = _cosine(self.lr_peak, self.lr_floor, self.phase1_epochs % self.cycle_epochs / self.cycle_epochs)
        return _cosine(handover, self.lr_final, (epoch - self.phase1_epochs) / (self.epochs - self.phase1_epochs))

    def phase(self, epoch: float) -> int:
        """1 or 2: the phase that `epoch` (a float from 0.0) lies in; a recipe may have only one of them."""
        return 1 if epoch < self.phase1_epochs or self.phase1_epochs == self.epochs else 2

    @property
    def restarts(self) -> tuple[float, ...]:
        """The epochs at which the learning rate jumps back to its peak."""
        count = math.ceil(self.phase1_epochs / self.cycle_epochs)
        return tuple(self.cycle_epochs * k for k in range(1, count))

    def out_of_patience(self, accuracy: Sequence[float]) -> bool:
        """Whether to stop, given the selection accuracy (percent) after each epoch so far.

        A warm restart lowers accuracy for longer than `patience`, so only the current cycle counts: its best
        must be `patience` epochs old. Every restart and the phase change start anew.
        """
        if self.patience is None or not accuracy:
            return False
        begin = int(max(t for t in (0, *self.restarts, self.phase1_epochs) if t < len(accuracy)))
        cycle = accuracy[begin:]
        return len(cycle) - 1 - cycle.index(max(cycle)) >= self.patience

    def stretched(self, factor: float) -> Recipe:
        """The same recipe with every count of epochs multiplied by `factor`, its curves keeping their shape.

        Counts that have to be whole (run, phase 1, patience) are rounded. Patience is never shortened: noise
        from one epoch to the next does not shrink with the run.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise RecipeError(f"cannot stretch a recipe by {factor}: the factor must be above 0")
        epochs = max(1, round(self.epochs * factor))
        phase1_epochs = min(epochs, round(self.phase1_epochs * factor))
        name = self.name if epochs == self.epochs else f"{re.sub('-[0-9]+ep$', '', self.name)}-{epochs}ep"
        return dataclasses.replace(
            self,
            name=name,
            epochs=epochs,
            phase1_epochs=phase1_epochs,
            warmup_epochs=min(_whole(self.warmup_epochs * factor), phase1_epochs),
            cycle_epochs=_whole(self.cycle_epochs * factor),
            patience=self.patience and max(self.patience, round(self.patience * factor)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Primitives only, as JSON holds them (pairs are lists)."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe of `to_dict`; a single value for a pair stands for both phases.

        Raises:
            RecipeError: for a field that does not exist, or a value that cannot be trained with.
        """
        return dataclasses.replace(cls(), **_as_fields(values))

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """This recipe with some fields replaced, checked like `from_dict`."""
        return dataclasses.replace(self, **_as_fields(settings))

    def save(self, path: str | Path) -> None:
        """Write the recipe as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from JSON.

        Raises:
            RecipeError: naming the file and what is wrong in it.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {error}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"{path} is not a recipe: it should hold one JSON object")
        try:
            return cls.from_dict(values)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error


def _cosine(high: float, low: float, progress: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


def _whole(value: float) -> float:
    value = round(value, 9)
    return int(value) if float(value).is_integer() else value


def _require(holds: bool, field: str, value: object, what: str) -> None:
    if not holds:
        raise RecipeError(f"{field} = {value!r}: {what}")


_PAIRS = {"dropout": float, "mixup_alpha": float, "augmentation": str, "image_size": int}


def _as_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in values:
        if name not in known:
            raise RecipeError(f"a recipe has no field {name!r}; its fields are {', '.join(known)}")
    out = dict(values)
    for name in _PAIRS.keys() & out.keys():
        value = out[name]
        out[name] = tuple(value) if isinstance(value, list | tuple) else (value, value)
    return out


def _check_types(recipe: Recipe) -> None:
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if field.name in _PAIRS:
            kind = _PAIRS[field.name]
            is_pair = isinstance(value, tuple) and len(value) == 2
            fits = is_pair and all(_is(part, kind) for part in value)
            _require(fits, field.name, value, f"must be a pair of {kind.__name__}s, phase 1 and phase 2")
        elif field.name == "patience":
            _require(value is None or _is(value, int), "patience", value, "must be a whole number or null")
        else:
            kind = type(field.default)
            if field.name in ("warmup_epochs", "cycle_epochs"):
                kind = float
            words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
            _require(_is(value, kind), field.name, value, f"must be {words[kind]}")


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
