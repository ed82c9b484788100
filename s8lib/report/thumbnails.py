"""Small images with a caption, placed by inches on a figure."""

from __future__ import annotations

from torch import Tensor

from s8lib.report.style import INK, Figure


def thumbnail(
    figure: Figure,
    image: Tensor,
    left: float,
    top: float,
    side: float,
    caption: str = "",
    colour: str = INK,
    size: float = 8.5,
) -> None:
    """Draw `image`, [3, H, W] uint8 or float in 0..1, with its caption below; inches from the top left corner."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    ax.set_axis_off()
    ax.text(0.5, -0.06, caption, transform=ax.transAxes, ha="center", va="top", color=colour, fontsize=size)


def in_words(name: str) -> str:
    """A class's name for people: `large_man-made_outdoor_things` without the underscores."""
    return name.replace("_", " ")
