"""Curves in a notebook, redrawn in place while training goes on."""

from __future__ import annotations

import time
from typing import Any

from s8lib.machine.progress import in_notebook
from s8lib.recipe import Recipe
from s8lib.report.curves import curves
from s8lib.run.log import EpochLog

PAUSE = 20  # times what a picture took: drawing costs at most 5% of the training


class LiveCurves:
    """What `train(watch=...)` takes: shows the curves once, then renews that picture in place.

    After every epoch, or less often where epochs are short; after the last one always. Outside a notebook nothing
    is drawn.
    """

    def __init__(self, recipe: Recipe, target: float | None = None) -> None:
        self._recipe = recipe
        self._target = target
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
