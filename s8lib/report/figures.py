"""What all pictures share: a figure without pyplot, its colours, small images on it, and its way to the disk."""

import io
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from torch import Tensor

from s8lib.run.save import replacing

# Okabe and Ito's colours: told apart with any colour vision, and far enough from white for a projector.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
INK, FAINT, GRID = "#1A1A1A", "#5A5A5A", "#D5D5D5"
PHASES = ("#DCEBF7", "#FCEBCF")  # backgrounds of phases 1 and 2

# Matplotlib's 10 points on 8 inches are 14 pixels where the picture is shown 800 wide.
WIDTH = 8.0  # inches
SCREEN_DPI, FILE_DPI = 100, 200

# Decorates what draws: a dark style of the notebook would hide ink on white. Grids are faint, and behind the data.
# A $ in the name of a class or a recipe begins no formula.
SPINES = {"axes.spines.top": False, "axes.spines.right": False}
GRIDS = {"axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7}
light = style.context(["default", SPINES | GRIDS | {"text.parse_math": False}])


class Figure(MatplotlibFigure):
    """A figure that pyplot does not know, so none is leaked, and that a notebook shows as it is; in inches."""

    def __init__(self, height: float, title: str = "", width: float = WIDTH, layout: Any = "constrained") -> None:
        super().__init__(figsize=(width, height), dpi=SCREEN_DPI, layout=layout)
        if title:
            self.suptitle(title, fontsize=13, weight="bold", color=INK)

    @light
    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=SCREEN_DPI)
        return out.getvalue()


@light
def save(figure: MatplotlibFigure, path: Path) -> Path:
    """Write `path`, a .png or .jpg, in one piece."""
    quality = {"quality": 92, "subsampling": 0}  # of a .jpg
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=FILE_DPI, pil_kwargs=quality)
    return path


def thumbnail(ax: Axes, image: Tensor, caption: str = "", ink: str = INK, size: float = 8.5) -> None:
    """Show a small image, [3, H, W] uint8 or float in 0..1, with its caption below."""
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(caption, y=-0.06, pad=0, va="top", color=ink, fontsize=size)


def in_words(name: str) -> str:
    """A class's name for people: `large_man-made_outdoor_things` without the underscores."""
    return name.replace("_", " ")
