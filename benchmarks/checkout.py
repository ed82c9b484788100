"""The commit that a figure was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commit_of_checkout() -> str | None:
    """The commit that this code is, with `-dirty` if it differs from it; None where git does not say."""
    head = _git("rev-parse", "HEAD")
    return head and head + ("-dirty" if _git("status", "--porcelain", "s8lib", "benchmarks") else "")


def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():  # else git would answer for a repository that this folder merely lies in
        return None
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git here, or it does not trust this folder's owner
        return None
    return done.stdout.strip()
