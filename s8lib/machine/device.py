"""What the machine can do: device, precision, compiler, and what a report says about it."""

import contextlib
import ctypes
import os
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from s8lib import __version__
from s8lib.machine.ranks import Ranks
from s8lib.validation import BadInput, one_line

# Deterministic algorithms need this, and torch looks at it once, at the process's first product of matrices.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class DeviceError(BadInput):
    """A device, precision or compiler setting that cannot be used here."""


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, here or by `S8_DEVICE`, else the best here: CUDA, then Apple's MPS, then the CPU.

    Raises:
        DeviceError: for a device that torch does not know or that this machine lacks.
    """
    if device is None:
        device = os.environ.get("S8_DEVICE") or None
    if device is None:
        best = torch.accelerator.current_accelerator(check_available=True)
        device = best.type if best is not None and best.type in ("cuda", "mps") else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cuda", "mps", "cpu"):
            raise RuntimeError("use cuda, mps or cpu")
        if chosen.type == "cuda" and torch.cuda.is_available():
            # torchrun's: a GPU for each process of a node, which may be all that this process is shown
            gpus, ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % gpus)
            shown = ranks if gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else gpus
            chosen = own if chosen.index is None else chosen
            if ranks > 1 and (ranks > shown or chosen != own):
                raise RuntimeError(f"each of {ranks} ranks here needs a GPU of its own; there are {gpus}")
        torch.ones(1, device=chosen).add_(1).item()  # this torch may have no code for a GPU as old as this one
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {str(device)!r} cannot be used here: {one_line(error)}") from error
    return chosen


def pick_precision(device: torch.device, precision: str = "auto") -> str:
    """`bf16` where the device is fast in it, `fp16` on older GPUs such as the T4, else `fp32`.

    Raises:
        DeviceError: for a precision other than auto, bf16, fp16, fp32.
    """
    if precision != "auto":
        if precision not in PRECISIONS:
            raise DeviceError(f"precision {precision!r} is unknown; there are auto, {', '.join(PRECISIONS)}")
        return precision
    if device.type == "cuda":
        # A T4 (7.5) accepts bf16 too, but emulates it, many times slower than its fp16.
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    # A step of wrn-16-2 in bf16, in times of fp32's: 0.65 on an AMD EPYC, 1.24 on an Intel Xeon without AMX. That
    # of resnet-11 has not been compared since its convolutions are fast in fp32.
    amd = torch.cpu._is_avx512_bf16_supported() and "AMD" in _cpu_name()
    if device.type == "cpu" and (amd or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context for a precision of `pick_precision`."""
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32")


def pick_compile(device: torch.device, compile: str = "auto") -> bool:
    """Whether to use torch.compile: on a GPU that Triton supports.

    On two CPU cores it made a step of WRN-16-2 7% faster and cost up to a minute to compile, and ResNet-11 does
    without its fast convolutions then, so `auto` leaves it out there.

    Raises:
        DeviceError: for anything other than auto, on, off.
    """
    if compile not in ("auto", "on", "off"):
        raise DeviceError(f"compile {compile!r} is unknown; there are auto, on, off")
    if compile == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
    return compile == "on"


def deterministic_compiler() -> contextlib.AbstractContextManager[None]:
    """Within it the compiler chooses no kernel by its speed here, where this torch can be told so."""
    from torch._inductor import config  # here: it takes a second

    return config.patch(deterministic=True) if hasattr(config, "deterministic") else contextlib.nullcontext()


def compile_or_eager(
    step: Callable[..., Any], try_out: Callable[[Any], object], ranks: Ranks, say: Callable[[str], None]
) -> Any:
    """`step` compiled, if `try_out(compiled)` gets through on every rank, else `step` itself and one line why."""
    say("compiling the training step, which takes a minute or two")
    problem = ""
    try:
        torch._dynamo.reset()  # earlier runs of this process count towards a limit of recompilations
        # dynamic=False: a value that changes, such as dropout's at a phase boundary, is compiled in anew;
        # otherwise a resumed run would run other code than the uninterrupted one.
        compiled = torch.compile(step, dynamic=False)
        try_out(compiled)
    # The compiler has many kinds of errors: torch's, Triton's, a file's. One of the step's own comes again in it.
    except Exception as error:  # noqa: BLE001
        problem = one_line(error)
    if not ranks.any(bool(problem)):
        return compiled
    torch._dynamo.reset()
    say(f"torch.compile failed ({problem or 'on another rank'}): training goes on without it, more slowly")
    return step


def keep_memory(device: torch.device) -> None:
    """On a CPU, let glibc keep the memory that a step frees for the next one, as torch does on a GPU.

    By default it gives large blocks back to the system at once, which then clears every page of the next ones.
    This holds for the whole process from then on. Nothing is done with another C library, or where the environment
    has `MALLOC_MMAP_...` or `MALLOC_TRIM_...`.
    """
    tuned = any(name.startswith(("MALLOC_MMAP_", "MALLOC_TRIM_")) for name in os.environ)
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc" and not tuned:
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader of the results needs to know of the machine; names no user, host or path."""
    found: dict[str, Any] = {"device": device.type, "device_name": _cpu_name()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device_name": properties.name,
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _nvidia_driver(),
        }
    return found | {
        "cpu_threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "s8lib": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 does not tell them
    return str(capabilities.get("cpu_name", platform.machine()))


def _nvidia_driver() -> str | None:
    """The driver's version, which torch does not know; None where `nvidia-smi` does not tell it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.split()), None)  # a line for each GPU, all with one driver
