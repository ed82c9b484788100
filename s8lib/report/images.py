"""Images side by side: what the network is shown in training, and what it takes pictures for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s8lib.data import augment
from s8lib.data.cifar100 import CLASSES, Cifar100, Split
from s8lib.inference import predict, prepare
from s8lib.recipe import Knobs, Recipe
from s8lib.report.figures import BLUE, FAINT, INK, WIDTH, Figure, in_words

SIDE, PITCH = 0.8, 0.87  # inches, of a sample and from one to the next: eight make a figure 8 inches wide
LEFT, TOP, LINE, GAP = 1.04, 0.52, 0.145, 0.1  # inches
WRAP = 12  # characters that fit under a sample


class _Row(NamedTuple):
    title: str
    images: Tensor  # [n, 3, H, W], uint8 or float in 0..1
    captions: list[str]

    @property
    def height(self) -> float:
        return SIDE + LINE * max(len(caption.splitlines()) for caption in self.captions) + GAP


def sample_grid(data: Cifar100, recipe: Recipe, count: int = 8, seed: int = 0) -> Figure:
    """Up to `count` training images: original, augmented as in each phase, and mixed if the recipe has MixUp.

    Every row shows the same images. The phases start from the same random numbers, so flips, shifts and colours
    differ by the recipe alone. Training draws one lambda for a batch; here each image has its own.
    """
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    rows = _rows(data.train.subset(order[:count]).to("cpu"), data.classes, recipe, seed)
    figure = Figure(LEFT + PITCH * max(len(rows[0].images), 4), TOP + sum(row.height for row in rows))
    figure.write(0.12, 0.2, f"{recipe.name}: what the network sees", size=13, weight="bold")
    top = TOP
    for row in rows:
        figure.write(0.12, top + SIDE / 2, row.title, size=10, linespacing=1.4)
        for column, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            figure.thumbnail(image, LEFT + PITCH * column, top, SIDE, caption, FAINT)
        top += row.height
    return figure


def _rows(split: Split, classes: tuple[str, ...], recipe: Recipe, seed: int) -> list[_Row]:
    words = [in_words(classes[label]) for label in split.labels.tolist()]
    names = [textwrap.fill(name, WRAP) for name in words]
    rows = [_Row("original", split.images, names)]
    phases = {recipe.phase(epoch): recipe.at(epoch) for epoch in (0, recipe.epochs)}  # two, or only one
    for phase, knobs in phases.items():
        size = f"\n{knobs.image_size} pixels" if len(set(recipe.image_size)) > 1 else ""
        title = f"phase {phase}:\n{knobs.augmentation}{size}"
        rows.append(_Row(title, _augmented(split.images, knobs, seed), [""] * len(names)))
    # One row of MixUp: with the other phase's alpha it would look no different.
    mixing = [(phase, knobs) for phase, knobs in phases.items() if knobs.mixup_alpha]
    for phase, knobs in mixing[:1]:
        lam = augment.draw_mixup(len(names), knobs.mixup_alpha, torch.Generator().manual_seed(seed))
        mixed = augment.mixup(_augmented(split.images, knobs, seed), lam[:, None, None, None])
        partners = [textwrap.fill(f"+ {name}", WRAP + 1) for name in words]
        captions = [
            f"λ {weight:.2f}\n{own}\n{partner}"
            for weight, own, partner in zip(lam.tolist(), names, [partners[-1], *partners[:-1]], strict=True)
        ]
        rows.append(_Row(f"phase {phase}:\nMixUp α {knobs.mixup_alpha:g}", mixed, captions))
    return rows


def _augmented(images: Tensor, knobs: Knobs, seed: int) -> Tensor:
    changed = augment.augment(images, knobs.augmentation, torch.Generator().manual_seed(seed))
    return augment.resize(changed, knobs.image_size).clamp(0, 1)


def guesses(
    model: nn.Module, images: Any, classes: Sequence[str] = CLASSES, captions: Sequence[str] = ()
) -> Figure:
    """Each image, as small as the network sees it, beside its five likeliest classes and their probabilities.

    Args:
        images: as `s8.predict` takes them.
        classes: the names of the model's outputs, in their order.
        captions: a line for below each image; by default the superclass of the likeliest class.
    Raises:
        ImageError, ModelError: as `s8.predict`.
    """
    seen = prepare(images)
    answers = predict(model, seen, classes)
    columns, side, row, top = 2, 1.1, 1.6, 0.15  # inches
    names, bars = 2.5, 1.05  # where the names end; the length of 100%
    figure = Figure(height=top + row * math.ceil(len(seen) / columns))
    for place, (image, answer) in enumerate(zip(seen, answers, strict=True)):
        left, above = WIDTH / columns * (place % columns), top + row * (place // columns)
        caption = captions[place] if captions else in_words(answer[0].superclass or "")
        figure.thumbnail(image, left + 0.15, above, side, caption)
        ax = figure.box(left + names, above, bars, side)
        shown = ax.barh(range(len(answer)), [guess.probability for guess in answer], height=0.6, color=BLUE)
        percents = [f"{100 * guess.probability:.0f}%" for guess in answer]
        ax.bar_label(shown, percents, padding=3, color=FAINT, fontsize=8.5)
        ax.set_yticks(range(len(answer)), [in_words(guess.name) for guess in answer], color=INK)
        ax.set(xlim=(0, 1), xticks=[], ylim=(len(answer) - 0.5, -0.5))
        ax.tick_params(length=0)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
