"""Whole files: written in one piece, on disk for good, and known by their size and sha256."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # ends the name of a file that is being written


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place, on disk for good, if the block succeeds."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk for good."""
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        return
    with contextlib.suppress(OSError):  # Windows and some network mounts cannot sync a folder; its files are safe
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def digest(file: io.BufferedReader) -> dict[str, Any]:
    """Size and sha256 of a file that is open at its beginning; it is left at its end."""
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": file.tell(), "sha256": sha256}


def identity(path: Path) -> dict[str, Any]:
    """`digest` of the file at `path`: what a manifest keeps of it."""
    with open(path, "rb") as file:
        return digest(file)


def holds(path: Path, entry: dict[str, Any]) -> bool:
    """Whether `path` is the file that a manifest's entry describes."""
    return path.is_file() and identity(path).items() <= entry.items()
