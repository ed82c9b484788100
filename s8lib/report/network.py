"""torchsummary's table of a network, whose totals the project's commission quotes: as text and as two images."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.patches import Rectangle
from torch import nn

from s8lib.report.figures import FAINT, INK, PHASES, WIDTH, Figure, save

SHAPE = (3, 32, 32)  # of a CIFAR image
COLUMNS = 2  # on each of the two images
ROW, MARGIN, GAP, TITLE = 0.17, 0.12, 0.24, 0.62  # inches


class MissingPackage(ImportError):
    """A package that only this part of the report needs is not installed; the message says how to get it."""


class Layer(NamedTuple):
    """A row of the table: `path` is the module's in the network, the rest is torchsummary's."""

    path: str
    name: str
    shape: tuple[int, ...]  # of the output, without the batch
    parameters: int


Block = tuple[str, list[Layer]]


def summary(model: nn.Module) -> str:
    """torchsummary's table as text: layers, output shapes, parameters and megabytes for one image.

    The model, its device and the random state stay as they are.

    Raises:
        MissingPackage: without torchsummary.
    """
    return _table(model)[0]


def architecture(model: nn.Module, folder: str | Path) -> tuple[Path, Path]:
    """Write `param_1.png` and `param_2.png`, `layer_figure`'s two parts, into `folder`."""
    first, second = (save(layer_figure(model, part), Path(folder, f"param_{part}.png")) for part in (1, 2))
    return first, second


def layer_figure(model: nn.Module, part: int) -> Figure:
    """`summary` as an image for a README: its rows block by block, in part 1 or 2, and in part 2 its totals.

    Raises:
        MissingPackage: without torchsummary.
    """
    table, paths = _table(model)
    found = re.findall(r"^ *(\w+-\d+) +\[-1, ([\d, ]+)\] +([\d,]+)$", table, flags=re.MULTILINE)
    layers = [
        Layer(path, name, tuple(int(side) for side in shape.split(",")), int(count.replace(",", "")))
        for path, (name, shape, count) in zip(paths, found, strict=True)
    ]
    totals = [line for line in table.splitlines() if re.match(r"[A-Z][\w /-]+(\(MB\))?: ", line)]
    columns = _columns(_blocks(layers), 2 * COLUMNS)
    height = max(sum(len(block) + 1 for _, block in column) for column in columns)
    name, total = getattr(model, "name", type(model).__name__), totals[0].rpartition(" ")[2]
    title = f"{name}: {len(layers)} layers, {total} parameters  (part {part} of 2)"
    return _draw(title, columns[(part - 1) * COLUMNS : part * COLUMNS], height, totals if part == 2 else [])


def _table(model: nn.Module) -> tuple[str, list[str]]:
    """The table's text, and the path of each row's module."""
    try:
        from torchsummary import summary as print_summary
    except ImportError as error:
        raise MissingPackage("the model's table needs torchsummary: pip install torchsummary==1.5.1") from error
    # A copy on the CPU, in eval mode: torchsummary knows no other device but "cuda", runs the network on random
    # numbers, leaves hooks behind if that fails, and would move BatchNorm's statistics.
    probe = copy.deepcopy(model).cpu().float().eval()
    paths: list[str] = []
    for path, module in probe.named_modules():
        if path and not isinstance(module, nn.Sequential | nn.ModuleList):  # what torchsummary has a row for
            module.register_forward_hook(lambda *_, path=path: paths.append(path))
    out = io.StringIO()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(out):
        print_summary(probe, SHAPE, device="cpu")
    return out.getvalue(), paths


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
    height = 0
    while True:
        columns: list[list[Block]] = []
        height, room = height + 1, 0
        for name, block in blocks:
            if len(block) + 1 > room:
                columns.append([])
                room = height
            columns[-1].append((name, block))
            room -= len(block) + 1
        if len(columns) <= count:
            return columns + [[]] * (count - len(columns))


def _draw(title: str, columns: list[list[Block]], rows: int, totals: list[str]) -> Figure:
    half = (len(totals) + 1) // 2
    figure = Figure(WIDTH, TITLE + ROW * (rows + half + bool(totals)) + MARGIN)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set(xlim=(0, WIDTH), ylim=(figure.get_figheight(), 0))  # inches from the top
    ax.text(MARGIN, 0.2, title, fontsize=12, weight="bold", color=INK, va="center")
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    shade = itertools.cycle(PHASES)
    for index, column in enumerate(columns):
        left = MARGIN + index * (width + GAP)
        stops = (left + 0.06, left + 0.72 * width, left + width - 0.06)  # name; shape and count end there

        def line(y: float, *cells: str, stops: tuple[float, ...] = stops, **style: Any) -> None:
            for cell, stop in zip(cells, stops, strict=True):
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
    for index, text in enumerate(totals):
        side, row = divmod(index, half)
        x, y = MARGIN + side * (width + GAP) + 0.06, TITLE + ROW * (rows + row + 1)
        ax.text(x, y, text, fontsize=10, weight="bold", color=INK, va="center")
    return figure
