"""The dataset in pieces, for a machine without a network that takes only so much at a time (see GPU.md).

`python -m benchmarks.pieces DATA OUT` cuts: OUT/1, OUT/2, ... hold a piece each, and the commit they go with.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import s8lib as s8

ROOT = Path(__file__).parents[1]
FOLDER = "cifar-100-python"
COMMIT = "commit"
MIB = 2**20


def cut(data: Path, out: Path, size: int = 47 * MIB) -> list[Path]:
    """Cut an xz tar of `data`/cifar-100-python into pieces of `size` bytes; about two minutes for CIFAR-100.

    Returns:
        The pieces, OUT/1/c100.1, OUT/2/c100.2, ...
    Raises:
        DataError: if `data` does not hold the folder.
    """
    if not (data / FOLDER).is_dir():
        raise s8.DataError(f"{data} holds no folder {FOLDER} to cut into pieces")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        archive.add(data / FOLDER, FOLDER, filter=_without_owner)
    commit = commit_of_checkout()
    pieces: list[Path] = []
    packed.seek(0)
    while block := packed.read(size):
        number = len(pieces) + 1
        piece = out / str(number) / f"c100.{number:02d}"
        piece.parent.mkdir(parents=True, exist_ok=True)
        piece.write_bytes(block)
        if commit:
            (piece.parent / COMMIT).write_text(commit + "\n", encoding="utf-8")
        pieces.append(piece)
    return pieces


def join(pieces: Path, into: Path) -> None:
    """Unpack the joined `pieces`/c100.* and leave what they hold in `into`, whole or not at all.

    Raises:
        DataError: if a piece is missing or damaged.
    """
    found = sorted(pieces.glob("c100.*"))
    if not found:
        raise s8.DataError(f"there is no piece c100.* in {pieces}: bring them, or name a folder with --data")
    partial = into.with_name(into.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier try that was cut
    partial.mkdir(parents=True)
    packed = io.BytesIO(b"".join(piece.read_bytes() for piece in found))
    try:
        with tarfile.open(fileobj=packed, mode="r:xz") as archive:
            archive.extractall(partial, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        sizes = ", ".join(f"{piece.name} of {piece.stat().st_size:,} bytes" for piece in found)
        raise s8.DataError(
            f"the pieces in {pieces} do not make a whole archive ({error}): {sizes}; bring the missing or bad one"
        ) from error
    os.replace(partial, into)


def commit_of_checkout(pieces: Path | None = None) -> str | None:
    """The commit that this code is, with `-dirty` if it differs; where git is not, what `pieces`/commit says."""
    if (ROOT / ".git").exists():
        head = _git("rev-parse", "HEAD")
        return head and head + ("-dirty" if _git("status", "--porcelain", "s8lib", "benchmarks") else "")
    if pieces and (pieces / COMMIT).is_file():
        return (pieces / COMMIT).read_text(encoding="utf-8").strip()
    return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git here, or it does not trust this folder's owner
        return None
    return done.stdout.strip()


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pieces", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help=f"the folder that holds {FOLDER}/")
    parser.add_argument("out", type=Path, metavar="OUT", help="where folders 1, 2, 3 go, one for each trip")
    options = parser.parse_args()
    try:
        for piece in cut(options.data, options.out):
            print(f"{piece}  {piece.stat().st_size / MIB:.1f} MiB")
    except s8.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
