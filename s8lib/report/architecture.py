"""The network's table as two images that can be read in a README."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from matplotlib.patches import Rectangle
from torch import nn

from s8lib.report.style import FAINT, INK, PHASES, WIDTH, Figure, save
from s8lib.report.summary import Layer, layers, summary, totals

COLUMNS = 2  # on each of the two images
ROW, MARGIN, GAP, TITLE = 0.17, 0.12, 0.24, 0.62  # inches

Block = tuple[str, list[Layer]]


def architecture(model: nn.Module, folder: str | Path) -> tuple[Path, Path]:
    """Write `param_1.png` and `param_2.png` into `folder`: torchsummary's rows block by block, and its totals.

    Raises:
        MissingPackage: without torchsummary.
    """
    rows, sums = layers(model), totals(summary(model))
    columns = _columns(_blocks(rows), 2 * COLUMNS)
    height = max(sum(len(block) + 1 for _, block in column) for column in columns)
    name = getattr(model, "name", type(model).__name__)
    title = f"{name}: {len(rows)} layers, {sums[0].rpartition(' ')[2]} parameters"
    written = []
    for part in (1, 2):
        shown = columns[(part - 1) * COLUMNS : part * COLUMNS]
        figure = _draw(f"{title}  (part {part} of 2)", shown, height, sums if part == 2 else [])
        written.append(save(figure, Path(folder, f"param_{part}.png")))
    return written[0], written[1]


def _blocks(rows: list[Layer]) -> list[Block]:
    """Rows by the residual block that they lie in; a block's own row, and its group's, close it."""
    paths = {row.path for row in rows}
    containers = {path for path in paths if any(other.startswith(f"{path}.") for other in paths)}
    blocks: list[Block] = []
    current = None
    for row in rows:
        inside = max((path for path in containers if row.path.startswith(f"{path}.")), key=len, default="")
        if row.path not in containers and inside != current:
            blocks.append((inside or ("head" if blocks else "stem"), []))
            current = inside
        blocks[-1][1].append(row)
    return blocks


def _columns(blocks: list[Block], count: int) -> list[list[Block]]:
    """`blocks` in `count` columns, none split, the longest as short as that allows."""
    for height in itertools.count(max(len(block) + 1 for _, block in blocks)):
        columns: list[list[Block]] = [[]]
        room = height
        for name, block in blocks:
            if len(block) + 1 > room:
                columns.append([])
                room = height
            columns[-1].append((name, block))
            room -= len(block) + 1
        if len(columns) <= count:
            return columns + [[]] * (count - len(columns))
    raise AssertionError("unreachable")


def _draw(title: str, columns: list[list[Block]], rows: int, sums: list[str]) -> Figure:
    half = (len(sums) + 1) // 2
    figure = Figure(WIDTH, TITLE + ROW * (rows + half + bool(sums)) + MARGIN)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(figure.get_figheight(), 0)  # inches from the top
    ax.text(MARGIN, 0.2, title, fontsize=12, weight="bold", color=INK, va="center")
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    shade = itertools.cycle(PHASES)
    for index, column in enumerate(columns):
        left = MARGIN + index * (width + GAP)
        stops = (left + 0.06, left + 0.72 * width, left + width - 0.06)  # name; shape and count end there

        def line(y: float, *cells: str, stops: tuple[float, ...] = stops, **style: Any) -> None:
            for cell, stop in zip(cells, stops, strict=False):
                ha = "left" if stop == stops[0] else "right"
                ax.text(stop, y + ROW / 2, cell, fontsize=9.5, va="center", ha=ha, **{"color": INK} | style)

        line(TITLE - ROW - 0.02, "layer", "output C×H×W", "parameters", color=FAINT)
        y = TITLE
        for name, block in column:
            ax.add_patch(Rectangle((left, y), width, ROW * (len(block) + 1), color=next(shade), linewidth=0))
            line(y, name, "", f"{sum(layer.parameters for layer in block):,}", weight="bold")
            for layer in block:
                y += ROW
                shape = "×".join(map(str, layer.shape))
                line(y, f"  {layer.name}", shape, f"{layer.parameters:,}" if layer.parameters else "–")
            y += ROW
    for index, text in enumerate(sums):
        side, row = divmod(index, half)
        x, y = MARGIN + side * (width + GAP) + 0.06, TITLE + ROW * (rows + row + 1)
        ax.text(x, y, text, fontsize=10, weight="bold", color=INK, va="center")
    return figure
