"""torchsummary's table of a network, whose totals the project's commission quotes."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from dataclasses import dataclass

import torch
from torch import nn

SHAPE = (3, 32, 32)  # of a CIFAR image


class MissingPackage(ImportError):
    """A package that only this part of the report needs is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Layer:
    """A row of the table: `path` is the module's in the network, the rest is torchsummary's."""

    path: str
    name: str
    shape: tuple[int, ...]  # of the output, without the batch
    parameters: int


def summary(model: nn.Module) -> str:
    """torchsummary's table as text: layers, output shapes, parameters and megabytes for one image.

    The model, its device and the random state stay as they are.

    Raises:
        MissingPackage: without torchsummary.
    """
    return _table(model)[0]


def layers(model: nn.Module) -> list[Layer]:
    """The table's rows, each with the path of its module."""
    text, paths = _table(model)
    rows = re.findall(r"^ *(\w+-\d+) +\[-1, ([\d, ]+)\] +([\d,]+)$", text, flags=re.MULTILINE)
    return [
        Layer(path, name, tuple(int(side) for side in shape.split(",")), int(count.replace(",", "")))
        for path, (name, shape, count) in zip(paths, rows, strict=True)
    ]


def totals(table: str) -> list[str]:
    """The lines of `summary` after its rows, such as `Total params: 36,536,884`."""
    return [line for line in table.splitlines() if re.match(r"[A-Z][\w /-]+(\(MB\))?: ", line)]


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
