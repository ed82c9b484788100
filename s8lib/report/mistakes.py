"""Where a network goes wrong, and whether it knows: confusion, worst classes, mistakes, reliability."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from typing import Any

from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from torch import Tensor

from s8lib.metrics import BINS, calibration
from s8lib.report.answers import Evaluation
from s8lib.report.figures import BLUE, FAINT, GRID, INK, RED, WIDTH, Figure, in_words, plain

PRINTED = 2  # percent: a smaller share of a superclass is a shade without a number
EXAMPLES = 4  # images beside each of the worst classes
COLUMNS = 4  # of mistakes
TITLE: dict[str, Any] = {"size": 13, "weight": "bold", "color": INK}


def superclass_confusion(evaluation: Evaluation) -> Figure:
    """Which superclass is taken for which, in percent of the images of the true one (a row)."""
    shares = _confusion(evaluation)
    n = len(shares)
    figure = Figure(height=8.3, layout="constrained")
    right = evaluation.metrics.superclass_top1
    figure.head(f"{right:.1f}% of the test images get a class of the right superclass")
    ax = figure.subplots()
    ax.set_facecolor(GRID)  # a row without images
    # The square root shows a confusion of 3% beside a diagonal of 90%.
    ax.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    for row, column in (shares >= PRINTED).nonzero().tolist():
        share = float(shares[row, column])
        ink = "white" if share > 35 else INK
        ax.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8.5, color=ink)
    names = [textwrap.fill(in_words(name), 20) for name in evaluation.superclasses]
    ax.set_xticks(range(n), names, fontsize=8.5, rotation=90, linespacing=0.95)
    ax.set_yticks(range(n), names, fontsize=8.5, linespacing=0.95)
    ax.tick_params(length=0)
    ax.set(xlabel="predicted superclass (% of the true one's images)", ylabel="true superclass")
    return figure


def _confusion(evaluation: Evaluation) -> Tensor:
    """[20, 20] float64: row true, column predicted, percent of the row; nan for a superclass without images."""
    n = len(evaluation.superclasses)
    predicted = evaluation.superclass_of[evaluation.predicted]
    known = predicted >= 0  # not a class that the data has no image of
    pairs = n * evaluation.split.coarse_labels[known] + predicted[known]
    counts = pairs.bincount(minlength=n * n).view(n, n).double()
    return 100 * counts / counts.sum(1, keepdim=True)


def worst_classes(evaluation: Evaluation, count: int = 8) -> Figure:
    """The `count` classes with the lowest top-1, each with an image for every class it is most often taken for."""
    top1 = evaluation.metrics.per_class
    worst = sorted((c for c in range(len(top1)) if not math.isnan(top1[c])), key=lambda c: top1[c])[:count]
    left, top, row, foot, bars = 1.25, 0.8, 0.9, 0.6, 2.5  # inches
    first, pitch, side = 4.15, 0.97, 0.52  # of the example images
    figure = Figure(height=top + row * len(worst) + foot)
    height = figure.get_figheight()
    figure.write(0.12, 0.24, "The worst classes, and what they are taken for", **TITLE)
    ax = figure.box(left, top, bars, row * len(worst))
    plain(ax, "x")
    ax.barh(range(len(worst)), [top1[c] for c in worst], height=0.5, color=BLUE)
    counts = evaluation.split.labels.bincount(minlength=len(top1)).tolist()
    names = [f"{textwrap.fill(in_words(evaluation.classes[c]), 14)}\nn = {counts[c]}" for c in worst]
    ax.set_yticks(range(len(worst)), names)
    ax.set(xlim=(0, 100), ylim=(len(worst) - 0.5, -0.5), xlabel="top-1 of the class's n test images (%)")
    mean = evaluation.metrics.top1
    ax.axvline(mean, color=INK, linewidth=1.2, linestyle="--", zorder=0.5)
    side_of_line = "right" if mean > 75 else "center"  # the next heading is near
    ax.annotate(f"all classes: {mean:.1f}%", (mean, -0.5), (0, 4), textcoords="offset points", ha=side_of_line)
    heading = "no mistakes" if evaluation.correct.all() else "most often taken for"
    figure.text(first / WIDTH, ax.get_position().y1 + 4 / 72 / height, heading, va="baseline")
    for position, c in enumerate(worst):
        outside = top1[c] < 50
        ax.text(
            top1[c] + (2 if outside else -2), position, f"{top1[c]:.0f}%",
            ha="left" if outside else "right", va="center", color=INK if outside else "white",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1} if outside else None,
        )  # fmt: skip
        for column, (image, times) in enumerate(_examples(evaluation, c)):
            taken_for = in_words(evaluation.classes[evaluation.predicted[image]])
            place = (first + pitch * column, top + row * position + 0.04, side)
            figure.thumbnail(evaluation.split.images[image], *place, f"{taken_for}\n{times} of {counts[c]}", RED)
    return figure


def _examples(evaluation: Evaluation, true: int) -> list[tuple[int, int]]:
    """Up to EXAMPLES images of the class `true`, one for each class it is most often taken for, and how often."""
    mistakes = evaluation.mistakes()
    wrong = mistakes[evaluation.split.labels[mistakes] == true]
    taken_for = evaluation.predicted[wrong].tolist()
    most_often = Counter(taken_for).most_common(EXAMPLES)
    return [(int(wrong[taken_for.index(c)]), times) for c, times in most_often]  # the surest of each


def confident_mistakes(evaluation: Evaluation, count: int = 16) -> Figure:
    """The `count` mistakes that the network is most confident of, the surest first."""
    mistakes = evaluation.mistakes()
    shown = mistakes[:count].tolist()
    side, column, top, row = 1.1, WIDTH / COLUMNS, 0.55, 1.75  # inches
    figure = Figure(height=top + row * math.ceil(len(shown) / COLUMNS) + 0.1)
    found = f"The surest of {len(mistakes):,}" if shown else "No"
    figure.write(0.12, 0.24, f"{found} mistakes in {len(evaluation.split):,} test images", **TITLE)
    for place, image in enumerate(shown):
        sure = 100 * float(evaluation.confidence[image])
        caption = (
            f"true: {in_words(evaluation.classes[evaluation.split.labels[image]])}\n"
            f"predicted: {in_words(evaluation.classes[evaluation.predicted[image]])}\n"
            f"{f'{sure:.1f}%' if sure < 99.95 else '> 99.9%'} sure"  # never 100%, which no softmax gives
        )
        left, above = column * (place % COLUMNS + 0.5) - side / 2, top + row * (place // COLUMNS)
        figure.thumbnail(evaluation.split.images[image], left, above, side, caption, size=10)
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy against confidence in 15 bins, over their sizes; the gaps make `Metrics.ece` (arXiv:1706.04599)."""
    metrics, confidence = evaluation.metrics, evaluation.confidence
    images, accuracy, sure = (bins.numpy() for bins in calibration(confidence, evaluation.correct))
    filled, width = images.nonzero()[0], 100 / BINS
    images, accuracy, sure = images[filled], 100 * accuracy[filled], 100 * sure[filled]
    middles = width * (filled + 0.5)
    figure = Figure(height=6.8, layout="constrained")
    figure.head(f"Reliability: expected calibration error {metrics.ece:.2f}%")
    diagram, sizes = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for ax in (diagram, sizes):
        plain(ax)
    diagram.bar(middles, accuracy, width, color=BLUE, edgecolor="white", alpha=0.6, label="accuracy of the bin")
    hatched = {"color": "#FFFFFFB0", "edgecolor": RED, "hatch": "///", "label": "gap to its mean confidence"}
    diagram.bar(middles, sure - accuracy, 0.5 * width, accuracy, **hatched)
    diagram.plot([0, 100], [0, 100], "--", color=INK, linewidth=1.2, label="perfectly calibrated")
    diagram.legend(loc="upper left", framealpha=1)
    diagram.set(ylabel="accuracy (%)", ylim=(0, 100))
    sizes.bar(middles, images, width, color=FAINT, edgecolor="white")
    sizes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    sizes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    sizes.set(xlabel=f"confidence: probability of the predicted class (%), {BINS} bins", ylabel="test images")
    sizes.set_xlim(0, 100)
    mean = 100 * float(confidence.mean())
    sizes.set_title(f"mean confidence {mean:.1f}%, accuracy {metrics.top1:.1f}%", size=10, loc="left")
    return figure
