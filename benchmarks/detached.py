"""Run a command that outlives the one that started it, and follow it for a while.

`python -m benchmarks.detached LOG SECONDS COMMAND ...` starts COMMAND in a session of its own, or finds it
running, shows its output for at most SECONDS, and leaves it running. The same line again follows on; it starts the
command anew if that failed or was killed, and not if it succeeded. Another line with the same LOG starts its own
command once that one has ended. For machines that end whatever takes too long.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STILL_RUNNING = 75  # sysexits.h: EX_TEMPFAIL, try again later
LOOK_BACK = 2000  # bytes of earlier output that whoever comes back is shown
INSIDE = 'code=$0; line=$1; shift; "$@"; printf "%s %s\\n" $? "$line" > "$code"'


def follow(log: Path, seconds: float, command: Sequence[str]) -> int:
    """The command's exit code (1 if it was killed), or STILL_RUNNING.

    `log` takes its output; beside it are written its exit code and line, `.exit`, and its lock, `.lock`.
    """
    code = log.with_name(log.name + ".exit")
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    if not _start(log, code, command):
        print(f"succeeded before, see {log}; delete {code} to run it again")
        return 0
    with open(log, encoding="utf-8", errors="replace") as output:
        output.seek(max(0, log.stat().st_size - LOOK_BACK))
        while (lock := _lock(log)) is None:
            print(output.read(), end="", flush=True)
            if time.monotonic() > deadline:
                print(f"still running after {seconds:.0f} s; the same command follows on")
                return STILL_RUNNING
            time.sleep(0.2)
        os.close(lock)
        print(output.read(), end="", flush=True)
    return int(code.read_text().split()[0]) if code.exists() else 1


def _start(log: Path, code: Path, command: Sequence[str]) -> bool:
    """Start the command unless it is running; False if it has succeeded already."""
    lock = _lock(log)
    if lock is None:
        return True
    try:
        line = shlex.join(command)
        if code.exists() and code.read_text() == f"0 {line}\n":
            return False
        code.unlink(missing_ok=True)
        with open(log, "a", encoding="utf-8") as output:
            print(f"$ {line}", file=output, flush=True)
            subprocess.Popen(
                ["sh", "-c", INSIDE, code, line, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[lock],  # all its children inherit it, so the lock goes when the last of them ends
            )
        return True
    finally:
        os.close(lock)


def _lock(log: Path) -> int | None:
    """The locked file's descriptor, or None if the command holds the lock."""
    lock = os.open(log.with_name(log.name + ".lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detached", description=__doc__)
    parser.add_argument("log", type=Path, metavar="LOG", help="the file that takes the command's output")
    parser.add_argument("seconds", type=float, metavar="SECONDS", help="how long to follow it")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, with arguments")
    options = parser.parse_args()
    if not options.command:
        parser.error("name the command to run")
    return follow(options.log, options.seconds, options.command)


if __name__ == "__main__":
    sys.exit(main())
