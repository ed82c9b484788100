"""What all pictures share: a figure without pyplot, its colours, and saving it in one piece."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

from s8lib.run.folder import replacing

# Okabe and Ito's colours: told apart with any colour vision, and far enough from white for a projector.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
INK, FAINT, GRID = "#1A1A1A", "#5A5A5A", "#D5D5D5"
PHASES = ("#DCEBF7", "#FCEBCF")  # backgrounds of phases 1 and 2

# Matplotlib's 10 points on 8 inches are 14 pixels where the picture is shown 800 wide.
WIDTH = 8.0  # inches
SCREEN_DPI, FILE_DPI = 100, 200


class Figure(MatplotlibFigure):
    """A figure that pyplot does not know, so none is leaked, and that a notebook shows as it is."""

    def __init__(self, width: float = WIDTH, height: float = 6.0, **options: Any) -> None:
        super().__init__(figsize=(width, height), dpi=SCREEN_DPI, **options)

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: MatplotlibFigure) -> bytes:
    """The figure as a PNG file for the screen."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=SCREEN_DPI)
    return out.getvalue()


def save(figure: MatplotlibFigure, path: Path) -> Path:
    """Write `path`, a .png or .jpg, in one piece."""
    jpeg = path.suffix == ".jpg"
    with replacing(path) as partial:
        figure.savefig(
            partial,
            format="jpeg" if jpeg else "png",
            dpi=FILE_DPI,
            pil_kwargs={"quality": 92, "subsampling": 0} if jpeg else {},
        )
    return path


def plain(ax: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Two spines and a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
