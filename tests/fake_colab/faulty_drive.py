"""A Drive that misbehaves: a folder, and what stands between it and `s8lib.run.drive`."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s8lib.run import drive


@dataclass(frozen=True)
class Call:
    """The `number`th call, from 1, that touched the Drive, such as open, read, write, close, stat, unlink."""

    number: int
    name: str
    path: Path


class FaultyDrive:
    """Takes the place of `open` and `os` in `s8lib.run.drive`.

    Args:
        root: the folder that plays the Drive.
        before: is shown every call before it is made, in whatever thread makes it, and may raise or wait. A write
            that it lets fail has written half of its bytes.
        quota: bytes; what is written beyond them fails with ENOSPC. What is deleted goes on counting, as the Trash
            does.
    """

    def __init__(
        self, root: Path, before: Callable[[Call], None] = lambda call: None, quota: int | None = None
    ) -> None:
        self.root, self.before, self.quota = root.absolute(), before, quota
        self.calls: list[Call] = []
        self.trash = 0

    @contextmanager
    def installed(self) -> Iterator[FaultyDrive]:
        self.install()
        try:
            yield self
        finally:
            uninstall()

    def install(self) -> None:
        vars(drive).update(open=self.open, os=self)

    def call(self, name: str, path: Any) -> None:
        """Let `before` decide about a call, if it is one to the Drive."""
        if Path(path).is_relative_to(self.root):
            self.calls.append(Call(len(self.calls) + 1, name, Path(path)))
            self.before(self.calls[-1])

    def open(self, path: Path, mode: str) -> Any:
        self.call(f"open {mode}", path)
        file = _File(self, path, mode)
        return io.BufferedReader(file) if mode == "rb" else io.BufferedWriter(file)

    def __getattr__(self, name: str) -> Any:
        """`os.listdir`, `os.stat` and so on, with `call` before them."""

        def called(path: Any) -> Any:
            self.call(name, path)
            return getattr(os, name)(path)

        return called

    def fsync(self, number: int) -> None:
        self.call("fsync", os.readlink(f"/proc/self/fd/{number}"))
        os.fsync(number)

    def unlink(self, path: Path) -> None:
        self.call("unlink", path)
        self.trash += path.stat().st_size
        path.unlink()

    def room(self) -> int:
        """Bytes that may still be written."""
        if self.quota is None:
            return 1 << 60
        files = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        return self.quota - self.trash - sum(file.stat().st_size for file in files)


class _File(io.FileIO):
    def __init__(self, drive: FaultyDrive, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.drive, self.path, self.writes = drive, path, mode == "wb"

    def readinto(self, buffer: Any) -> int | None:
        self.drive.call("read", self.path)
        return super().readinto(buffer)

    def write(self, data: Any) -> int:
        data = memoryview(data)
        room = self.drive.room()
        try:
            self.drive.call("write", self.path)
        except OSError:
            super().write(data[: len(data) // 2])
            raise
        if len(data) > room:
            super().write(data[: max(0, room)])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return super().write(data)

    def close(self) -> None:
        first = not self.closed
        super().close()
        if first and self.writes:
            self.drive.call("close", self.path)


def uninstall() -> None:
    """Give `s8lib.run.drive` the real `open` and `os` again."""
    vars(drive).update(open=builtins.open, os=os)


def fails(number: int, path: Path) -> None:
    raise OSError(number, os.strerror(number), str(path))


def disconnecting(number: int, after_checkpoints: int, copies: int) -> Callable[[Call], None]:
    """A `before` that fails with errno `number` in the middle of a checkpoint, after so many whole ones.

    The Drive is back when so many copies have failed; each of them is a thread of its own.
    """
    begun: set[str] = set()
    failed: set[threading.Thread] = set()

    def before(call: Call) -> None:
        if call.name == "open wb" and call.path.suffix == ".pt":
            begun.add(call.path.name)
        inside = call.name == "write" and call.path.suffix == ".pt"
        down = failed or (len(begun) > after_checkpoints and inside)
        if down and (threading.current_thread() in failed or len(failed) < copies):
            failed.add(threading.current_thread())
            fails(number, call.path)

    return before


def from_environment(root: Path) -> FaultyDrive | None:
    """What $FAKE_DRIVE asks for, as JSON: see the docstring of `google.colab` beside this file."""
    asked = json.loads(os.environ.get("FAKE_DRIVE", "{}"))
    return FaultyDrive(root, disconnecting(asked.pop("errno"), **asked)) if asked else None
