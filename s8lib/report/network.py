"""torchsummary's table of a network, whose totals the project's commission quotes: as text and as two images."""

import contextlib
import copy
import io
import itertools
import re
from pathlib import Path

import torch
from torch import nn

from s8lib.report.figures import FAINT, INK, PHASES, Figure, light, save
from s8lib.validation import user_path

COLUMNS = 2  # on each of the two images

Cells = tuple[str, str, str]  # name, shape and parameters, as they are written


class MissingPackage(ImportError):
    """A package that only this part of the report needs is not installed; the message says how to get it."""


def summary(model: nn.Module) -> str:
    """torchsummary's table as text: layers, output shapes, parameters and megabytes for one image.

    The model, its device and the random state stay as they are.

    Raises:
        MissingPackage: without torchsummary.
    """
    return _table(model)[0]


def architecture(model: nn.Module, folder: str | Path) -> tuple[Path, Path]:
    """Write `param_1.png` and `param_2.png`, `layer_figure`'s two parts, into `folder`."""
    first, second = (save(layer_figure(model, part), user_path(folder) / f"param_{part}.png") for part in (1, 2))
    return first, second


@light
def layer_figure(model: nn.Module, part: int) -> Figure:
    """`summary` as an image for a README: its rows block by block, in part 1 or 2, and in part 2 its totals.

    Raises:
        MissingPackage: without torchsummary.
    """
    table, owners = _table(model)
    rows = re.findall(r"^ *(\w+-\d+) +\[-1, ([\d, ]+)\] +([\d,]+)$", table, flags=re.MULTILINE)
    totals = re.findall(r"^([A-Z][\w /-]+(?:\(MB\))?): (.+)$", table, flags=re.MULTILINE)
    blocks = [*_blocks(rows, owners), [(name, "", total) for name, total in totals]]
    # Of the four columns each block is in the one in which its middle lies, so that none is split.
    columns: list[list[tuple[Cells, str, str, str]]] = [[] for _ in range(2 * COLUMNS)]
    lines, above = sum(map(len, blocks)), 0
    for block, shade in zip(blocks, itertools.cycle(PHASES)):
        column = columns[2 * COLUMNS * (above + len(block) // 2) // lines]
        column += [(block[0], shade, "bold", INK), *((cells, shade, "normal", INK) for cells in block[1:])]
        above += len(block)
    height = max(map(len, columns))
    name = getattr(model, "name", type(model).__name__)
    title = f"{name}: {len(rows)} layers, {totals[0][1]} parameters  (part {part} of 2)"
    figure = Figure(0.7 + 0.17 * height, title)
    head = (("layer", "output C×H×W", "parameters"), "white", "normal", FAINT)
    for ax, column in zip(figure.subplots(1, COLUMNS), columns[(part - 1) * COLUMNS :], strict=False):
        ax.set(xlim=(0, 1), ylim=(height, -1))
        ax.set_axis_off()
        for y, (cells, shade, weight, ink) in enumerate([head, *column], -1):
            ax.axhspan(y, y + 1, color=shade, linewidth=0)
            for x, ha, cell in zip((0.02, 0.72, 0.98), ("left", "right", "right"), cells, strict=True):
                ax.text(x, y + 0.5, cell, ha=ha, va="center", fontsize=9.5, weight=weight, color=ink)
    return figure


def _blocks(rows: list[Cells], owners: list[str]) -> list[list[Cells]]:
    """The rows of each residual block, and of what is before and after them, below a heading with their sum."""
    blocks: list[list[Cells]] = []
    for owner, group in itertools.groupby(zip(owners, rows, strict=True), key=lambda pair: pair[0]):
        layers = [row for _, row in group]
        total = sum(int(parameters.replace(",", "")) for _, _, parameters in layers)
        blocks.append([(owner or ("head" if blocks else "stem"), "", f"{total:,}")])
        for name, shape, parameters in layers:
            blocks[-1].append((f"  {name}", shape.replace(", ", "×"), "–" if parameters == "0" else parameters))
    return blocks


def _table(model: nn.Module) -> tuple[str, list[str]]:
    """The table's text, and for each of its rows the path of the residual block it lies in; "" for none."""
    try:
        from torchsummary import summary as print_summary
    except ImportError as error:
        raise MissingPackage("the model's table needs torchsummary: pip install torchsummary==1.5.1") from error
    # A copy on the CPU, in eval mode: torchsummary knows no other device but "cuda", runs the network on random
    # numbers, leaves hooks behind if that fails, and would move BatchNorm's statistics.
    probe = copy.deepcopy(model).cpu().float().eval()
    blocks: list[str] = []
    owners: list[str] = []
    for path, module in probe.named_modules():
        if path and not isinstance(module, nn.Sequential | nn.ModuleList):  # what torchsummary has a row for
            blocks += [path] if list(module.children()) else []
            owner = next((block for block in reversed(blocks) if f"{path}.".startswith(f"{block}.")), "")
            module.register_forward_hook(lambda *_, owner=owner: owners.append(owner))
    out = io.StringIO()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(out):
        print_summary(probe, (3, 32, 32), device="cpu")
    return out.getvalue(), owners
