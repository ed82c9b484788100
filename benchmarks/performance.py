"""How fast a device trains: FLOPs of the network, the device's own matrix rate, and their ratio, MFU."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import s8lib as s8
from s8lib.machine.device import PRECISIONS, pick_precision


@cache
def training_flops(model: str, side: int = 32) -> int:
    """Floating-point operations to train the network on one image of `side` pixels.

    Three times the forward pass: the backward pass computes as much again for the gradient of the activations and
    once more for that of the weights. Convolutions and matrix products only, an addition and a multiplication
    each counted as one.
    """
    with torch.device("meta"):
        network = s8.build_model(model).eval()
        image = torch.empty(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return 3 * counter.get_total_flops()


def matrix_rate(device: torch.device, repeats: int = 7) -> tuple[str, float]:
    """The precision that training picks on `device`, and FLOP/s of a large matrix product in it.

    The median of `repeats` blocks of products of random matrices: zeros draw less power, and run faster.
    """
    precision = pick_precision(device)
    on_gpu = device.type != "cpu"
    side, products = (8192, 10) if on_gpu else (1024, 5)
    a, b = (torch.randn(side, side, device=device).to(PRECISIONS[precision]) for _ in range(2))
    seconds = []
    for block in range(repeats + 1):
        started = time.perf_counter()
        for _ in range(products):
            a @ b
        if on_gpu:
            torch.accelerator.synchronize(device)
        if block:  # the first one warms up
            seconds.append((time.perf_counter() - started) / products)
    return precision, 2 * side**3 / statistics.median(seconds)


def peak_memory_gib(device: torch.device) -> float:
    """The most, in GiB, that this process, or on a CPU one that it waited for, took of its device's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS and KiB on Linux
    most = max(resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most * unit / 2**30


def speed_of(log: s8.EpochLog, recipe: s8.Recipe, images: int, flops_per_second: float) -> dict[str, Any]:
    """Images/s of a run on `images` training images, and its MFU against a device of `flops_per_second`.

    MFU, model FLOPs utilisation (arXiv:2204.02311, appendix B), is that of training alone; epochs of smaller
    images count with the FLOPs of that size.
    """
    seen = images // recipe.batch_size * recipe.batch_size  # in an epoch
    training = [seen / row.images_per_s for row in log]
    flops = [seen * training_flops(recipe.model, recipe.at(row.epoch - 1).image_size) for row in log]
    return {
        "images_per_s": seen * len(log) / sum(training),
        "images_per_s_with_evaluation": seen * len(log) / sum(row.seconds for row in log),
        "mfu_percent": 100 * sum(flops) / sum(training) / flops_per_second,
    }
