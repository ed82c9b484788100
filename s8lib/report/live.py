"""Curves in a notebook, redrawn in place while training goes on."""

from __future__ import annotations

import sys
from typing import Any

from s8lib.epoch_log import EpochLog
from s8lib.recipe import Recipe
from s8lib.report.curves import curves


class LiveCurves:
    """What `train(watch=...)` takes: shows the curves once, then renews that picture after every epoch.

    Outside a notebook nothing is drawn. One picture takes a few tenths of a second.
    """

    def __init__(self, recipe: Recipe, target: float | None = None) -> None:
        self._recipe = recipe
        self._target = target
        self._display: Any = None

    def __call__(self, log: EpochLog) -> None:
        ipython = sys.modules.get("IPython")  # not imported: where it was not, this is no notebook
        if ipython is None or ipython.get_ipython() is None:
            return
        figure = curves(log, self._recipe, self._target)
        if self._display is None:
            self._display = ipython.display.display(figure, display_id=True)
        else:
            self._display.update(figure)
