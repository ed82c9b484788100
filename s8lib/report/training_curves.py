"""Loss, accuracy and learning rate over the epochs: a picture, one that a notebook renews, the film's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from s8lib.machine.progress import in_notebook
from s8lib.recipe import Recipe
from s8lib.report.figures import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, Figure, light
from s8lib.report.knobs import mark_phases, moments, plot_lr
from s8lib.run.log import EpochLog

HEIGHTS = (3.2, 2.4, 1.2)  # of accuracy, loss and learning rate
PLANNED = "#9A9A9A"  # the learning rate that is still to come
PAUSE = 20  # of the live picture, times what it took: drawing costs at most 5% of the training


@light
def curves(log: EpochLog, recipe: Recipe, target: float | None = None) -> Figure:
    """Accuracy and loss, train and test, over the learning rate; `target` is a test accuracy in percent.

    Epochs run to the recipe's end, so a run that is under way shows how far it has come.
    """
    figure = Figure(7.6, f"{recipe.name}, {recipe.model}, seed {recipe.seed}")
    CurvesPlot(figure.subplots(3, sharex=True, height_ratios=HEIGHTS), recipe, log, target)
    batches = "augmented, mixed-up batches" if any(recipe.mixup_alpha) else "augmented batches"
    explanation = (
        f"Train is measured on {batches} while the network changes: not comparable with test.\n"
        f"The best epoch is chosen on {log.chosen_on}."
    )
    figure.supxlabel(explanation, fontsize=8.5, color=FAINT)
    return figure


class LiveCurves:
    """What `train(watch=...)` takes: shows the curves once, then renews that picture in place.

    After every epoch, or less often where epochs are short; after the last one always. Outside a notebook nothing
    is drawn.
    """

    def __init__(self, recipe: Recipe, target: float | None = None) -> None:
        self._recipe, self._target = recipe, target
        self._display: Any = None
        self._next = 0.0

    def __call__(self, log: EpochLog) -> None:
        started = time.perf_counter()
        accuracy = [row.selection_acc for row in log]
        is_last = len(log) == self._recipe.epochs or self._recipe.out_of_patience(accuracy)
        if not in_notebook() or (started < self._next and not is_last):
            return
        from IPython.display import display

        figure = curves(log, self._recipe, self._target)
        if self._display is None:
            self._display = display(figure, display_id=True)
        else:
            self._display.update(figure)
        now = time.perf_counter()
        self._next = now + PAUSE * (now - started)


class CurvesPlot:
    """The curves of `log` on three axes, top to bottom; `show` moves them to another one, within these limits."""

    def __init__(self, axes: Sequence[Axes], recipe: Recipe, log: EpochLog, target: float | None = None) -> None:
        accuracy, self._loss, lr = axes
        self._recipe = recipe
        for ax in axes:
            mark_phases(ax, recipe, named=ax is accuracy)
        accuracy.set(ylabel="accuracy (%)", ylim=(0, 100), yticks=range(0, 101, 20))
        self._loss.set(ylabel="loss (nats)", ylim=(0, 1))
        planned = plot_lr(lr, recipe, PLANNED, 1.4)
        lr.set_xlabel("epoch")
        if target is not None:
            accuracy.axhline(target, color=PURPLE, linewidth=1.4, linestyle=(0, (6, 2)))
            beside: dict[str, Any] = {"xytext": (6, 3), "textcoords": "offset points"}
            accuracy.annotate(f"target {target:g}%", (0, target), color=PURPLE, weight="bold", **beside)
        # Of a long run only the last epoch is marked, or epoch 1 alone would not be seen.
        every = None if recipe.epochs <= 30 else [-1]
        marks: dict[str, Any] = {"marker": "o", "markersize": 4, "markevery": every}
        # Not clipped, so that marks on the border are whole; not in the layout, which an empty line would upset.
        free: dict[str, Any] = {"clip_on": False, "in_layout": False}
        self._lines = {
            name: ax.plot([], [], style, color=colour, linewidth=2, **free, **marks)[0]
            for name, ax, style, colour in (
                ("train_acc", accuracy, "--", ORANGE),
                ("holdout_acc", accuracy, "-.", GREEN),
                ("test_acc", accuracy, "-", BLUE),
                ("train_loss", self._loss, "--", ORANGE),
                ("test_loss", self._loss, "-", BLUE),
            )
        }
        (self._lr,) = lr.plot([], [], color=INK, linewidth=2)
        (self._drop,) = accuracy.plot([], [], color=RED, linewidth=1.2)
        (self._star,) = accuracy.plot([], [], "*", color=RED, markersize=14, markeredgecolor="white", **free)
        paper = {"facecolor": "#FFFFFFD0", "edgecolor": "none", "pad": 1}  # no line strikes the words out
        self._label = accuracy.text(0, 2, "", color=RED, weight="bold", in_layout=False, bbox=paper)
        shown = {"test": "test_acc", "train": "train_acc"}
        shown |= {} if log[0].holdout_acc is None else {"held-out": "holdout_acc"}
        lines = [self._lines[name] for name in shown.values()]
        accuracy.legend(lines, shown, loc="upper left", ncols=len(shown), framealpha=1)
        self._loss.legend(lines, shown, loc="upper right", ncols=len(shown), framealpha=1)
        if len(log) < recipe.epochs:
            lr.legend([self._lr, planned], ["so far", "planned"], loc="upper right", ncols=2, framealpha=1)
        self.show(log)

    def show(self, log: EpochLog) -> None:
        """Draw the curves up to the last row of `log`, which holds at least one."""
        epochs = [row.epoch for row in log]
        for name, line in self._lines.items():
            values = [getattr(row, name) for row in log]
            if None not in values:
                line.set_data(epochs, values)
        passed = [moment for moment in moments(self._recipe) if moment < epochs[-1]]
        self._lr.set_data(passed, [self._recipe.at(moment).lr for moment in passed])
        highest = max(max(row.train_loss, row.test_loss) for row in log)
        self._loss.set_ylim(0, max(self._loss.get_ylim()[1], 1.2 * highest))
        best = log.best
        self._drop.set_data([best.epoch] * 2, [0, best.test_acc])
        self._star.set_data([best.epoch], [best.test_acc])
        side = "right" if best.epoch > self._recipe.epochs / 2 else "left"
        lines = {"best": best} if best is log[-1] else {"best": best, "last": log[-1]}
        told = [f"  {what}: {row.test_acc:.2f}% in epoch {row.epoch}  " for what, row in lines.items()]
        self._label.set(text="\n".join(told), x=best.epoch, horizontalalignment=side)
