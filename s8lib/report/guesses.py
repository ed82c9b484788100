"""What a network takes pictures for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from s8lib.data.cifar100 import CLASSES
from s8lib.inference import predict, prepare
from s8lib.report.style import BLUE, FAINT, INK, WIDTH, Figure
from s8lib.report.thumbnails import in_words, thumbnail

COLUMNS = 2


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
    side, column, row, top = 1.1, WIDTH / COLUMNS, 1.6, 0.15  # inches
    names, bars = 2.5, 1.05  # where the names end; the length of 100%
    figure = Figure(height=top + row * math.ceil(len(seen) / COLUMNS))
    height = figure.get_figheight()
    for place, (image, answer) in enumerate(zip(seen, answers, strict=True)):
        left, above = column * (place % COLUMNS), top + row * (place // COLUMNS)
        caption = captions[place] if captions else in_words(answer[0].superclass or "")
        thumbnail(figure, image, left + 0.15, above, side, caption, size=8.5)
        box = ((left + names) / WIDTH, 1 - (above + side) / height, bars / WIDTH, side / height)
        ax = figure.add_axes(box)
        ax.barh(range(len(answer)), [guess.probability for guess in answer], height=0.6, color=BLUE)
        ax.set_yticks(range(len(answer)), [in_words(guess.name) for guess in answer], color=INK)
        ax.set_ylim(len(answer) - 0.5, -0.5)
        ax.set_xlim(0, 1)
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
        for position, guess in enumerate(answer):
            text = f"{100 * guess.probability:.0f}%"
            ax.annotate(text, (guess.probability, position), (3, 0), textcoords="offset points", va="center",
                        color=FAINT, fontsize=8.5)  # fmt: skip
    return figure
