"""A network's answers to the test images, and pictures of where they are wrong and whether it knows."""

import math
import textwrap
from collections import Counter
from dataclasses import dataclass

import torch
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from torch import Tensor, nn

from s8lib.data.cifar100 import Cifar100, Split
from s8lib.machine.device import pick_device
from s8lib.metrics import BINS, calibration, metrics_of, predict_logits, superclasses_of
from s8lib.report.figures import BLUE, FAINT, GRID, INK, RED, Figure, in_words, light, thumbnail

PRINTED = 2  # percent: a smaller share of a superclass is a shade without a number
EXAMPLES = 4  # images beside each of the worst classes
COLUMNS = 4  # of mistakes


@dataclass(eq=False)
class Evaluation:
    """What a network answers to the images of `split`, all on the CPU.

    Attributes:
        logits: [N, classes] float32.
        metrics: of `logits`, over all of `split`.
        superclass_of: [classes] int64, each class's superclass; -1 for a class that `split` has no image of.
        confidence: [N] float32, the probability of the class that is predicted.
        predicted: [N] int64.
        correct: [N] bool.
    """

    logits: Tensor
    split: Split
    classes: tuple[str, ...]
    superclasses: tuple[str, ...]

    def __post_init__(self) -> None:
        labels, coarse_labels = self.split.labels, self.split.coarse_labels
        self.metrics = metrics_of(self.logits, labels, coarse_labels)
        self.superclass_of = superclasses_of(labels, coarse_labels, len(self.classes))
        self.confidence, self.predicted = self.logits.softmax(1).max(1)
        self.correct = self.predicted == labels

    def mistakes(self) -> Tensor:
        """[M] int64: the images that are taken for another class, the most confident mistake first."""
        wrong = (~self.correct).nonzero().flatten()
        return wrong[self.confidence[wrong].argsort(descending=True, stable=True)]


def evaluation(
    model: nn.Module, data: Cifar100, device: str | torch.device | None = None, precision: str = "auto"
) -> Evaluation:
    """Run `model` over the test set once, as `s8.evaluate` does."""
    split = data.test.to("cpu")
    logits = predict_logits(model.to(pick_device(device)), split.images, precision).cpu()
    return Evaluation(logits, split, data.classes, data.superclasses)


@light
def superclass_confusion(evaluation: Evaluation) -> Figure:
    """Which superclass is taken for which, in percent of the images of the true one (a row)."""
    n = len(evaluation.superclasses)
    own = evaluation.superclasses == evaluation.classes  # one's own, of which there are no superclasses
    predicted = evaluation.predicted if own else evaluation.superclass_of[evaluation.predicted]
    known = predicted >= 0  # not a class that the data has no image of
    pairs = n * evaluation.split.coarse_labels[known] + predicted[known]
    counts = pairs.bincount(minlength=n * n).view(n, n).double()
    images = evaluation.split.coarse_labels.bincount(minlength=n)
    shares = 100 * counts / images[:, None]  # nan for a superclass without images
    size = min(8.5, 220 / n)  # points
    kind = "class" if own else "superclass"
    figure = Figure(8.3, f"{evaluation.metrics.superclass_top1:.1f}% of the test images get the right {kind}")
    ax = figure.subplots()
    ax.set_facecolor(GRID)  # a row without images
    # The square root shows a confusion of 3% beside a diagonal of 90%.
    ax.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    for row, column in (shares >= PRINTED).nonzero().tolist():
        share = float(shares[row, column])
        ink = "white" if share > 35 else INK
        ax.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=size, color=ink)
    names = [textwrap.fill(in_words(name), 20) for name in evaluation.superclasses]
    ax.set_xticks(range(n), names, fontsize=size, rotation=90, linespacing=0.95)
    ax.set_yticks(range(n), names, fontsize=size, linespacing=0.95)
    ax.tick_params(length=0)
    ax.set(xlabel=f"predicted {kind} (% of the true one's images)", ylabel=f"true {kind}")
    return figure


@light
def class_accuracy(evaluation: Evaluation) -> Figure:
    """Top-1 of every class, the best first, in columns of up to 25."""
    top1 = evaluation.metrics.per_class
    ranked = sorted((c for c in range(len(top1)) if not math.isnan(top1[c])), key=lambda c: -top1[c])
    rows = min(len(ranked), max(25, math.ceil(len(ranked) / 4)))
    columns = [ranked[at : at + rows] for at in range(0, len(ranked), rows)]
    figure = Figure(0.7 + 0.22 * rows, f"Test accuracy of each class (all: {evaluation.metrics.top1:.1f}%)")
    for ax, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        names = [in_words(evaluation.classes[c]) for c in column]
        bars = ax.barh(range(len(column)), [top1[c] for c in column], 0.75, color=BLUE)
        ax.bar_label(bars, fmt="{:.0f}", padding=3, fontsize=8.5)
        ax.set_yticks(range(len(column)), names, fontsize=8.5)
        ax.set(xlim=(0, 115), xticks=[], ylim=(rows - 0.4, -0.6))
        ax.tick_params(length=0)
        ax.spines["bottom"].set_visible(False)
    return figure


@light
def worst_classes(evaluation: Evaluation, count: int = 8) -> Figure:
    """The `count` lowest classes below 100% top-1, each with an image for each that it is most often taken for."""
    top1 = evaluation.metrics.per_class
    ranked = sorted((c for c in range(len(top1)) if not math.isnan(top1[c])), key=lambda c: top1[c])
    worst = [c for c in ranked[:count] if top1[c] < 100] or ranked[:1]
    counts = evaluation.split.labels.bincount(minlength=len(top1)).tolist()
    figure = Figure(1.4 + 0.9 * len(worst), "The worst classes, and what they are most often taken for")
    grid = figure.add_gridspec(len(worst), 1 + EXAMPLES, width_ratios=(2.8, *[1] * EXAMPLES))
    ax = figure.add_subplot(grid[:, 0])
    ax.grid(axis="x")
    ax.axvline(evaluation.metrics.top1, color=INK, linewidth=1.2, linestyle="--", zorder=0.5)
    mean = f"all classes: {evaluation.metrics.top1:.1f}%"
    ax.text(evaluation.metrics.top1, 1.01, mean, transform=ax.get_xaxis_transform(), ha="center")
    bars = ax.barh(range(len(worst)), [top1[c] for c in worst], height=0.5, color=BLUE)
    ax.bar_label(bars, fmt="{:.0f}%", padding=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    names = [f"{textwrap.fill(in_words(evaluation.classes[c]), 14)}\nn = {counts[c]}" for c in worst]
    ax.set_yticks(range(len(worst)), names)
    # From the upper edge of the first image beside it to the lower edge of the last one.
    ax.set(xlim=(0, 100), ylim=(len(worst) - 0.7, -0.3), xlabel="top-1 of the class's n test images (%)")
    mistakes = evaluation.mistakes()
    for row, c in enumerate(worst):
        wrong = mistakes[evaluation.split.labels[mistakes] == c]
        taken_for = evaluation.predicted[wrong].tolist()
        for column, (other, times) in enumerate(Counter(taken_for).most_common(EXAMPLES), 1):
            image = evaluation.split.images[wrong[taken_for.index(other)]]  # of those it is surest of
            caption = f"{in_words(evaluation.classes[other])}\n{times} of {counts[c]}"
            thumbnail(figure.add_subplot(grid[row, column]), image, caption, RED)
    return figure


@light
def confident_mistakes(evaluation: Evaluation, count: int = 16) -> Figure:
    """The `count` mistakes that the network is most confident of, the surest first."""
    mistakes = evaluation.mistakes()
    shown = mistakes[:count].tolist()
    rows = math.ceil(len(shown) / COLUMNS)
    found = f"The surest of {len(mistakes):,}" if shown else "No"
    title = f"{found} mistake{'s' * (len(mistakes) != 1)} in {len(evaluation.split):,} test images"
    figure = Figure(0.65 + 1.95 * rows, title)
    best = evaluation.logits.softmax(1).topk(2)
    for place, image in enumerate(shown, 1):
        (sure, less), (first, second) = (100 * best.values[image]).tolist(), best.indices[image].tolist()
        caption = (
            f"true: {in_words(evaluation.classes[evaluation.split.labels[image]])}\n"
            f"predicted: {in_words(evaluation.classes[first])}\n"
            f"{f'{sure:.1f}%' if sure < 99.95 else '> 99.9%'} sure\n"  # never 100%, which no softmax gives
            f"then: {in_words(evaluation.classes[second])} {f'{less:.1f}' if less >= 0.05 else '< 0.1'}%"
        )
        thumbnail(figure.add_subplot(rows, COLUMNS, place), evaluation.split.images[image], caption, size=10)
    return figure


@light
def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy against confidence in 15 bins, over their sizes; the gaps make `Metrics.ece` (arXiv:1706.04599)."""
    metrics, confidence = evaluation.metrics, evaluation.confidence
    images, accuracy, sure = (bins.numpy() for bins in calibration(confidence, evaluation.correct))
    filled, width = images.nonzero()[0], 100 / BINS
    images, accuracy, sure = images[filled], 100 * accuracy[filled], 100 * sure[filled]
    middles = width * (filled + 0.5)
    figure = Figure(6.8, f"Reliability: expected calibration error {metrics.ece:.2f}%")
    diagram, sizes = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for ax in (diagram, sizes):
        ax.grid()
    diagram.bar(middles, accuracy, width, color=BLUE, edgecolor="white", alpha=0.6, label="accuracy of the bin")
    hatched = {"color": "#FFFFFFB0", "edgecolor": RED, "hatch": "///", "label": "gap to its mean confidence"}
    diagram.bar(middles, sure - accuracy, 0.5 * width, accuracy, **hatched)
    diagram.plot([0, 100], [0, 100], "--", color=INK, linewidth=1.2, label="perfectly calibrated")
    # Above the diagram: a network that is too modest fills it to the top.
    diagram.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0)
    diagram.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
    sizes.bar(middles, images, width, color=FAINT, edgecolor="white")
    sizes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    sizes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    sizes.set(xlabel=f"confidence: probability of the predicted class (%), {BINS} bins", ylabel="test images")
    mean = 100 * float(confidence.mean())
    sizes.set_title(f"mean confidence {mean:.1f}%, accuracy {metrics.top1:.1f}%", size=10, loc="left")
    return figure
