"""What the last bits of a training depend on: remembered with each save, and taken up again on resume."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from s8lib.machine.device import pick_precision

# A change of these is more than last bits; GPUs, and the compiler's code there, draw masks of their own.
FAR = ("dropout masks", "mixup partners", "sync_batchnorm", "ranks", "device", "compiled")
# What a save had that does not tell.
BEFORE = {
    "dropout masks": "torch",
    "mixup partners": "of a rank's share",
    "small convolutions": "torch, padded",
    "Newton-Schulz": "matrices",
}


def arithmetic(
    device: torch.device, precision: str, compiled: bool, ranks: int, deterministic: bool, rest: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it, in primitives: two trainings with the same values, data and seed give the same bits where
    "deterministic" is true.

    `rest` is what depends on the network, the recipe and what was asked for. On a CPU all algorithms are
    deterministic.
    """
    has = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx": torch.cpu._is_amx_tile_supported()}
    # What torch's own kernels and oneDNN's are chosen by.
    instructions = [torch.backends.cpu.get_cpu_capability(), *(name for name, there in has.items() if there)]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        **({"threads": torch.get_num_threads()} if device.type == "cpu" else {}),
        "instructions": " ".join(instructions) if device.type == "cpu" else "",
        "torch": str(torch.__version__),  # a subclass of str would need a pickle
        "compiled": compiled,
        "ranks": ranks,
        "mixup partners": "of the batch",
        "deterministic": deterministic or device.type == "cpu",
        **rest,
    }


@contextlib.contextmanager
def taken_up(device: torch.device, precision: str, saved: Mapping[str, Any]) -> Iterator[str]:
    """The precision to go on in, and as many threads as before, where this machine has them natively.

    Args:
        precision: what was asked for; anything but `auto` wins over what was saved.
        saved: the `arithmetic` of the save that is gone on from; empty for none.
    """
    chosen, threads = pick_precision(device, precision), torch.get_num_threads()
    native = {"fp32", pick_precision(device)} | ({"fp16"} if device.type == "cuda" else set())
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        native.add("bf16")
    alike = (saved.get("device") == "cpu") == (device.type == "cpu")  # else fp32 of a CPU would slow a GPU down
    if precision == "auto" and alike and saved.get("precision") in native:
        chosen = saved["precision"]
    before = saved.get("threads")
    if isinstance(before, int) and 0 < before <= (os.cpu_count() or 1):
        torch.set_num_threads(before)
    try:
        yield chosen
    finally:
        torch.set_num_threads(threads)


def tell_what_differs(saved: Mapping[str, Any], here: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """One line, if a resumed run will not be to the bit what it would have been."""
    if not saved:
        say("NOTE: this save does not tell what its last bits depended on; where that differs, they will differ")
    alone = {"mixup partners": here["mixup partners"]} if saved.get("ranks", 1) == 1 else {}
    saved = {**BEFORE, **alone, **saved}
    differing = [f"{key} {saved[key]!r}, now {now!r}" for key, now in here.items() if saved.get(key, now) != now]
    if differing:
        far = any(saved.get(key, here[key]) != here[key] for key in FAR)
        bits = "" if far else " in their last bits"
        say(f"NOTE: weights will differ{bits} from an uninterrupted run's: {'; '.join(differing)}")
