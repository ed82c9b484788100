"""The recipe as a picture and as a table: what every knob does over the epochs."""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from s8lib.machine.progress import Table
from s8lib.recipe import Recipe
from s8lib.report.figures import BLUE, FAINT, INK, PHASES, Figure, light

JUST_BEFORE = 1e-9  # epochs
LABELS = {
    "dropout": "dropout", "mixup_alpha": "MixUp α", "label_smoothing": "label\nsmoothing",
    "augmentation": "augmen-\ntation", "image_size": "image side\n(pixels)",
}  # fmt: skip


@light
def schedule(recipe: Recipe) -> Figure:
    """The knobs over the epochs, phases shaded and restarts marked; the image size too, if it changes."""
    names = [name for name in LABELS if name != "image_size" or len(set(recipe.image_size)) > 1]
    figure = Figure(3.3 + 1.02 * len(names), f"{recipe.name}: what changes in training")
    axes = figure.subplots(1 + len(names), sharex=True, height_ratios=[2.6] + [1] * len(names))
    plot_lr(axes[0], recipe)
    epochs = moments(recipe)
    for ax, name in zip(axes[1:], names, strict=True):
        values = [getattr(recipe.at(epoch), name) for epoch in epochs]
        ax.plot(epochs, values, color=BLUE, linewidth=1.8, clip_on=False, zorder=3)  # a 0 lies on the border
        if isinstance(values[0], str):  # the first on top
            ax.set_ylim(len({*values}) - 0.4, -0.6)
        else:
            ax.set(ylim=(0, 1.4 * max(values) or 1), yticks=sorted({0, *values}))
        ax.set_ylabel(LABELS[name], fontsize=9.5)
    for ax in axes:
        mark_phases(ax, recipe, named=ax is axes[0])
    axes[-1].set_xlabel("epoch")
    figure.align_ylabels(axes)
    return figure


def schedule_table(recipe: Recipe) -> Table:
    """The knobs where something changes, as plain text; `lr before` and `lr` are the two sides of that moment."""
    lines = ["  epoch  what                lr before         lr  dropout  mixup  smoothing  augmentation  image"]
    for epoch, what in boundaries(recipe):
        knobs = recipe.at(epoch)
        before = f"{recipe.at(epoch - JUST_BEFORE).lr:.6f}" if epoch else "-"
        after = "-" if epoch == recipe.epochs else f"{knobs.lr:.6f}"
        lines.append(
            f"{epoch:7.5g}  {what:<18} {before:>10} {after:>10}  {knobs.dropout:7.4g}  {knobs.mixup_alpha:5.4g}  "
            f"{knobs.label_smoothing:9.4g}  {knobs.augmentation:<12}  {knobs.image_size:5d}"
        )
    return Table("\n".join(lines), head=True)


def boundaries(recipe: Recipe) -> list[tuple[float, str]]:
    """The epochs (floats) at which the schedule changes, in order, with what happens there."""
    events = [(0.0, "start"), *((restart, "warm restart") for restart in recipe.restarts)]
    if recipe.warmup_epochs:
        events.insert(1, (recipe.warmup_epochs, "end of warm-up"))
    if 0 < recipe.phase1_epochs < recipe.epochs:
        events.append((recipe.phase1_epochs, "phase 2"))
    happens: dict[float, list[str]] = {}
    for epoch, what in [*events, (recipe.epochs, "last step")]:
        happens.setdefault(epoch, []).append(what)
    return [(epoch, ", ".join(what)) for epoch, what in sorted(happens.items())]


def plot_lr(ax: Axes, recipe: Recipe, colour: str = BLUE, width: float = 1.8) -> Line2D:
    """The learning rate of the whole recipe, every restart a vertical jump."""
    epochs = moments(recipe)
    ax.set(ylabel="learning rate", ylim=(0, 1.08 * recipe.lr_peak))
    return ax.plot(epochs, [recipe.at(epoch).lr for epoch in epochs], color=colour, linewidth=width)[0]


def mark_phases(ax: Axes, recipe: Recipe, named: bool = False) -> None:
    """Shade the phases, mark the restarts, and let x run over the whole recipe in epochs; names stand above."""
    ax.grid()
    above: dict[str, Any] = {"y": 1.025, "transform": ax.get_xaxis_transform(), "va": "bottom", "visible": named}
    for begin, end in itertools.pairwise(sorted({0, recipe.phase1_epochs, recipe.epochs})):
        phase = recipe.phase(begin)
        ax.axvspan(begin, end, color=PHASES[phase - 1], linewidth=0, zorder=0)
        ax.text(begin, s=f"phase {phase}", fontsize=10, weight="bold", color=INK, **above)
    for restart in recipe.restarts:
        ax.axvline(restart, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="_restart")
        ax.text(restart, s="restart", ha="center", fontsize=9, color=FAINT, **above)
    ax.set_xlim(0, recipe.epochs)
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))


def moments(recipe: Recipe) -> list[float]:
    """Epochs from the first step to the last, dense, with both sides of every boundary."""
    # No step is at the end itself, where a cycle that ends with the run would begin anew.
    *edges, end = (epoch for epoch, _ in boundaries(recipe))
    sides = [*edges, *(epoch - JUST_BEFORE for epoch in edges[1:])]
    return sorted([*np.linspace(0, end - JUST_BEFORE, 1000).tolist(), *sides])
