"""The Hub's client in a process of its own, as the process that started it sees it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TICK = 0.1  # seconds between two looks at a process that is waited for


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the `url` of its commit, or what went wrong and whether trying again can help."""

    url: str = ""
    error: str = ""
    permanent: bool = False
    retry_after: float = 0.0  # seconds


class HubProcess:
    """`hub_client.py` at work on one job. It ends with `end`, with this object or with this process.

    Args:
        job: what `hub_client` reads; its token goes nowhere else.
        limit: seconds after which it counts as hanging and is ended.
    """

    def __init__(self, job: dict[str, Any], limit: float) -> None:
        self._token, self._limit, self._started = job["token"], limit, time.monotonic()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 closed by _end; a pipe could fill up and block
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                str(Path(__file__).parents[1] / "hub_client.py"),
            ],  # -P: its folder is no sys.path
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the one who trains
        )
        self.end = weakref.finalize(self, _end, self._process, self._output)
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it could not start: its output says why
            self._process.stdin.write(json.dumps(job).encode() + b"\n")

    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        if self._process.poll() is not None:
            outcome = self._read()
        elif time.monotonic() - self._started > self._limit:
            outcome = Outcome(error=f"no answer from the Hub in {self._limit:.0f} s")
        else:
            return None
        self.end()
        return outcome

    def wait(self) -> Outcome:
        """How it ends."""
        while (outcome := self.outcome()) is None:
            time.sleep(TICK)
        return outcome

    def _read(self) -> Outcome:
        self._output.seek(0)
        text = self._output.read().decode(errors="replace").replace(self._token, "<token>")
        last_line = text.strip().rpartition("\n")[2]
        try:
            return Outcome(**json.loads(last_line))
        except (ValueError, TypeError):  # it was killed, or failed in a way that it does not know
            return Outcome(error=f"its process ended with {self._process.returncode}: {last_line[:200]}")


def _end(process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()
    output.close()
