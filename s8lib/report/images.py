"""Images side by side: what the network is shown in training, and what it takes pictures for."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s8lib.data import augment
from s8lib.data.cifar100 import Cifar100, Split
from s8lib.data.pictures import prepare
from s8lib.inference import predict
from s8lib.recipe import Recipe
from s8lib.report.figures import BLUE, FAINT, Figure, in_words, light, thumbnail

WRAP = 12  # characters that fit under a sample
_Row = tuple[str, Tensor, list[str]]  # title; images [n, 3, H, W], uint8 or float in 0..1; captions


@light
def sample_grid(data: Cifar100, recipe: Recipe, count: int = 8, seed: int = 0) -> Figure:
    """Up to `count` training images: original, augmented as in each phase, and mixed if the recipe has MixUp.

    Every row shows the same images. The phases start from the same random numbers, so flips, shifts and colours
    differ by the recipe alone. Training draws one lambda for a batch, most often near 0 or 1; here they go from
    0.9 to 0.5, so that the blend shows.
    """
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    rows = _rows(data.train.subset(order[:count]).to("cpu"), data.classes, recipe, seed)
    columns = len(rows[0][1])
    lines = sum(max(len(caption.splitlines()) for caption in captions) for _, _, captions in rows)
    height, width = 0.52 + 0.9 * len(rows) + 0.145 * lines, 1.04 + 0.87 * max(columns, 4)
    figure = Figure(height, f"{recipe.name}: what the network sees", width, layout="compressed")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (title, images, captions), row_axes in zip(rows, axes, strict=True):
        left = {"transform": row_axes[0].transAxes, "ha": "right", "va": "center"}
        row_axes[0].text(-0.1, 0.5, title, size=10, linespacing=1.4, **left)
        for ax, image, caption in zip(row_axes, images, captions, strict=True):
            thumbnail(ax, image, caption, FAINT)
    return figure


def _rows(split: Split, classes: tuple[str, ...], recipe: Recipe, seed: int) -> list[_Row]:
    words = [in_words(classes[label]) for label in split.labels.tolist()]
    names = [textwrap.fill(name, WRAP) for name in words]
    rows: list[_Row] = [("original", split.images, names)]
    mixed: list[_Row] = []
    phases = {recipe.phase(epoch): recipe.at(epoch) for epoch in (0, recipe.epochs)}  # two, or only one
    for phase, knobs in phases.items():
        images = augment.augment(split.images, knobs.augmentation, torch.Generator().manual_seed(seed))
        images = augment.resize(images, knobs.image_size).clamp(0, 1)
        size = f"\n{knobs.image_size} pixels" if len(set(recipe.image_size)) > 1 else ""
        rows.append((f"phase {phase}:\n{knobs.augmentation}{size}", images, [""] * len(names)))
        if knobs.mixup_alpha and not mixed:  # one such row: with the other alpha it would look no different
            lam = torch.linspace(0.9, 0.5, len(names))
            captions = [
                f"λ {lam[place]:.2f}\n{name}\n" + textwrap.fill(f"+ {words[place - 1]}", WRAP + 1)
                for place, name in enumerate(names)
            ]
            images = augment.mixup(images, lam[:, None, None, None])
            mixed.append((f"phase {phase}:\nMixUp α {knobs.mixup_alpha:g}", images, captions))
    return rows + mixed


@light
def guesses(
    model: nn.Module, images: Any, classes: Sequence[str] | None = None, captions: Sequence[str] = ()
) -> Figure:
    """Each image, as small as the network sees it, beside its five likeliest classes and their probabilities.

    Args:
        images: as `s8.predict` takes them.
        classes: the names of the model's outputs, in their order; by default those it was trained with.
        captions: a line for below each image; by default the superclass of the likeliest class.
    Raises:
        ImageError, ModelError: as `s8.predict`.
    """
    seen = prepare(images)
    answers = predict(model, seen, classes)
    rows = math.ceil(len(seen) / 2)
    figure = Figure(0.15 + 1.6 * rows)
    for place, (image, answer) in enumerate(zip(seen, answers, strict=True)):
        caption = captions[place] if captions else in_words(answer[0].superclass or "")
        thumbnail(figure.add_subplot(rows, 4, 2 * place + 1), image, caption)
        ax = figure.add_subplot(rows, 4, 2 * place + 2)
        names, sure = zip(*((in_words(guess.name), guess.probability) for guess in answer), strict=True)
        shown = ax.barh(names, sure, 0.6, color=BLUE)
        ax.bar_label(shown, fmt="{:.0%}", padding=3, color=FAINT, fontsize=8.5)
        ax.set(xlim=(0, 1), xticks=[])
        ax.invert_yaxis()
        ax.tick_params(length=0)
        ax.spines["bottom"].set_visible(False)
    return figure
