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
from matplotlib.axes import Axes
from torch import Tensor, nn

from s8lib.report.figures import FAINT, INK, PHASES, Figure, save

SHAPE = (3, 32, 32)  # of a CIFAR image
COLUMNS = 2  # on each of the two images

Cells = tuple[str, str, str]  # name, shape and parameters, as they are written


class MissingPackage(ImportError):
    """A package that only this part of the report needs is not installed; the message says how to get it."""


class Layer(NamedTuple):
    """A row of the table."""

    block: str  # the path of the residual block it lies in; "" for none
    name: str  # such as Conv2d-1
    shape: torch.Size  # of the output, without the batch
    parameters: int

    @property
    def cells(self) -> Cells:
        return f"  {self.name}", "×".join(map(str, self.shape)), f"{self.parameters:,}" if self.parameters else "–"


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
    table, layers = _table(model)
    totals = re.findall(r"^([A-Z][\w /-]+(?:\(MB\))?): (.+)$", table, flags=re.MULTILINE)
    columns = _columns([*_blocks(layers), [(name, "", total) for name, total in totals]])
    height = max(sum(len(block) for _, block in column) for column in columns)
    name = getattr(model, "name", type(model).__name__)
    title = f"{name}: {len(layers)} layers, {totals[0][1]} parameters  (part {part} of 2)"
    figure = Figure(0.7 + 0.17 * height, title)
    for ax, column in zip(figure.subplots(1, COLUMNS), columns[(part - 1) * COLUMNS :], strict=False):
        ax.set(xlim=(0, 1), ylim=(height, -1))
        ax.set_axis_off()
        _line(ax, -1, ("layer", "output C×H×W", "parameters"), color=FAINT)
        y = 0
        for shade, block in column:
            ax.axhspan(y, y + len(block), color=shade, linewidth=0)
            for row, cells in enumerate(block):
                _line(ax, y + row, cells, weight="normal" if row else "bold")
            y += len(block)
    return figure


def _blocks(layers: list[Layer]) -> list[list[Cells]]:
    """The rows of each residual block, and of what is before and after them, below a heading."""
    blocks: list[list[Cells]] = []
    for path, group in itertools.groupby(layers, key=lambda layer: layer.block):
        rows = list(group)
        heading = path or ("head" if blocks else "stem"), "", f"{sum(layer.parameters for layer in rows):,}"
        blocks.append([heading, *(layer.cells for layer in rows)])
    return blocks


def _columns(blocks: list[list[Cells]]) -> list[list[tuple[str, list[Cells]]]]:
    """The blocks with their shades, none split: each in the quarter of all lines in which its middle lies."""
    columns: list[list[tuple[str, list[Cells]]]] = [[] for _ in range(2 * COLUMNS)]
    lines, above = sum(map(len, blocks)), 0
    for block, shade in zip(blocks, itertools.cycle(PHASES)):
        columns[2 * COLUMNS * (above + len(block) // 2) // lines].append((shade, block))
        above += len(block)
    return columns


def _line(ax: Axes, y: int, cells: Cells, **style: Any) -> None:
    for x, ha, cell in zip((0.02, 0.72, 0.98), ("left", "right", "right"), cells, strict=True):
        ax.text(x, y + 0.5, cell, fontsize=9.5, ha=ha, va="center", **{"color": INK} | style)


def _table(model: nn.Module) -> tuple[str, list[Layer]]:
    """The table's text and its rows."""
    try:
        from torchsummary import summary as print_summary
    except ImportError as error:
        raise MissingPackage("the model's table needs torchsummary: pip install torchsummary==1.5.1") from error
    # A copy on the CPU, in eval mode: torchsummary knows no other device but "cuda", runs the network on random
    # numbers, leaves hooks behind if that fails, and would move BatchNorm's statistics.
    probe = copy.deepcopy(model).cpu().float().eval()
    layers: list[Layer] = []
    blocks: list[str] = []

    def note(path: str, module: nn.Module, output: Tensor) -> None:
        block = max((block for block in blocks if f"{path}.".startswith(f"{block}.")), key=len, default="")
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        layers.append(Layer(block, f"{type(module).__name__}-{len(layers) + 1}", output.shape[1:], parameters))

    for path, module in probe.named_modules():
        if path and not isinstance(module, nn.Sequential | nn.ModuleList):  # what torchsummary has a row for
            if list(module.children()):
                blocks.append(path)
            module.register_forward_hook(lambda module, _, output, path=path: note(path, module, output))
    out = io.StringIO()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(out):
        print_summary(probe, SHAPE, device="cpu")
    return out.getvalue(), layers
