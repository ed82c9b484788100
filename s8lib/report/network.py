"""torchsummary's table of a network, whose totals the project's commission quotes: as text and as two images."""

import contextlib
import copy
import io
import math
import re

import torch
from torch import nn

from s8lib.report.figures import FAINT, INK, Figure, light

COLUMNS = 2  # on each of the two images


def summary(model: nn.Module) -> str:
    """torchsummary's table as text: layers, output shapes, parameters and megabytes for one image.

    The model, its device and the random state stay as they are.
    """
    from torchsummary import summary as print_summary  # here: without it the rest of the report is still made

    # A copy on the CPU, in eval mode: torchsummary knows no other device but "cuda", runs the network on random
    # numbers, leaves hooks behind if that fails, and would move BatchNorm's statistics.
    probe, out = copy.deepcopy(model).cpu().float().eval(), io.StringIO()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(out):
        print_summary(probe, (3, 32, 32), device="cpu")
    return out.getvalue()


@light
def layer_figure(model: nn.Module, part: int) -> Figure:
    """`summary` as an image for a README: the first half of its lines in part 1, the second in part 2."""
    table = summary(model)
    rows = re.findall(r"^ *(\w+-\d+) +\[-1, ([\d, ]+)\] +([\d,]+)$", table, flags=re.MULTILINE)
    totals = re.findall(r"^([A-Z][\w /-]+(?:\(MB\))?): (.+)$", table, flags=re.MULTILINE)
    lines = [f"{name:<22}{shape.replace(', ', '×'):>12}{count:>12}" for name, shape, count in rows]
    lines += ["", *(f"{name:<34}{total:>12}" for name, total in totals)]
    height = math.ceil(len(lines) / (2 * COLUMNS))
    columns = [lines[at : at + height] for at in range(0, len(lines), height)][COLUMNS * (part - 1) :]
    name = getattr(model, "name", type(model).__name__)
    title = f"{name}: {len(rows)} layers, {totals[0][1]} parameters  (part {part} of 2)"
    figure = Figure(0.7 + 0.165 * height, title)
    for ax, column in zip(figure.subplots(1, COLUMNS), columns, strict=False):
        ax.set(ylim=(height + 0.5, -0.5))
        ax.set_axis_off()
        for y, line in enumerate([f"{'layer':<22}{'output C×H×W':>12}{'parameters':>12}", *column]):
            ax.text(0, y, line, color=INK if y else FAINT, family="monospace", fontsize=9.5, va="center")
    return figure
