"""Faults brought into a process by a preloaded library (injection.c), a damaged file, a disk that is small."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

BEFORE, INSIDE, AFTER = range(3)  # an operation; inside is half of a write
FOLDER = "S8_FAULTS"  # names the folder of the library in the process that has loaded it


class Fault(NamedTuple):
    """What happens to a process at its `nth` operation below `folder` that looks like `operation`."""

    folder: Path = Path("/nowhere")
    operation: str = "-"  # such as "rename checkpoints/epoch_*.pt"
    nth: int = 1
    moment: int = BEFORE
    signal: int = 0
    error: int = 0  # errno, of this operation and of all later ones below `folder`
    clock: int = 0  # seconds by which the process's clock is wrong
    trace: int = -1  # an open file that every operation is written to

    def arm(self) -> None:
        """From now on it may happen to this process."""
        arm = ctypes.CDLL(None).fault_arm
        arm(os.fsencode(self.folder), self.operation.encode(), *self[2:6], ctypes.c_long(self.clock), self.trace)


def preload(module: str) -> None:
    """Begin this process, `python -m module`, anew with the library compiled and loaded before everything else."""
    if FOLDER in os.environ:
        shutil.rmtree(os.environ.pop(FOLDER))
        del os.environ["LD_PRELOAD"]
        return
    folder = tempfile.mkdtemp()
    library, source = Path(folder, "injection.so"), Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", FOLDER: folder}
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | environment)


def damage(path: Path, random: Random) -> tuple[str, bytes]:
    """Cut, change, empty or delete a file: what was done, and what it held."""
    content = path.read_bytes()
    at = random.randrange(len(content)) if content else 0
    changed = bytearray(content)
    if content:
        changed[at] ^= 1 << random.randrange(8)
    how, new = random.choice((("cut", content[:at]), ("changed", changed), ("emptied", b""), ("deleted", None)))
    if new is None:
        path.unlink()
    else:
        path.write_bytes(new)
    return f"{path.name}, {len(content)} bytes, is {how} at {at}", content


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system in memory, in `folder`, which is made."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def may_mount() -> bool:
    """Whether a small disk can be had."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder, "disk"), 100):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False
