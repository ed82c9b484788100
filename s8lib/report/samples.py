"""What the network is shown: training images as they are, and as each phase of the recipe changes them."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import torch
from torch import Tensor

from s8lib.data import augment
from s8lib.data.cifar100 import Cifar100, Split
from s8lib.recipe import Knobs, Recipe
from s8lib.report.style import FAINT, Figure
from s8lib.report.thumbnails import in_words, thumbnail

SIDE, PITCH = 0.8, 0.87  # inches, of an image and from one to the next: eight make a figure 8 inches wide
LEFT, TOP, LINE, GAP = 1.04, 0.52, 0.145, 0.1  # inches
WRAP = 12  # characters that fit under an image


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
    columns = len(rows[0].images)
    figure = Figure(LEFT + PITCH * max(columns, 4), TOP + sum(row.height for row in rows))
    width, height = figure.get_size_inches()
    margin = 0.12 / width
    figure.text(
        margin, 1 - 0.2 / height, f"{recipe.name}: what the network sees", size=13, weight="bold", va="center"
    )
    top = TOP
    for row in rows:
        figure.text(margin, 1 - (top + SIDE / 2) / height, row.title, size=10, va="center", linespacing=1.4)
        for column, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            thumbnail(figure, image, LEFT + PITCH * column, top, SIDE, caption, FAINT)
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
