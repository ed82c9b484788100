"""Publishing a run to the Hugging Face Hub while it trains.

Training stages files, starts a process that sends them, and looks after each epoch whether it has ended. So what
is said is said by the one who trains, between epochs, and an upload that hangs can be ended.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s8lib.machine.progress import progress_bar
from s8lib.publish.export import Export
from s8lib.run.folder import RunError, RunFolder
from s8lib.run.hub import HubError, fetch_run, receive_run, snapshot, stage, unstage
from s8lib.run.hub_process import TICK, HubProcess, Outcome
from s8lib.run.log import EpochLog

CHECK_LIMIT = 30.0  # seconds that the first look at the Hub may take
UPLOAD_LIMIT = 1800.0  # seconds after which an upload counts as hanging; 440 MB take that long at 2 Mbit/s
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 900.0  # seconds between attempts; each failure doubles the pause

__all__ = ["HubError", "HubPublisher", "fetch_run"]


class HubPublisher:
    """Publishes a run: one commit every `every` epochs and one at its end, in the background.

    Each commit holds the best weights, the newest checkpoint, the epoch log, the report and the card, all of one
    moment. A failure never stops training: it is said in one line and tried again, with what is newest by then.

    Args:
        repo_id: "user/name"; the repository is made if it is not there.
        every: epochs between commits.
        token: by default the one of this machine, or of Colab's secrets; it needs write access.
        private: whether a new repository is private.
        wait: seconds that `finish` may wait for the last commit.
        say: takes one line for people at a time.
    Raises:
        HubError: no token, a wrong one, or a repository it may not write to. A Hub that cannot be reached is no
            error: what is due is sent when it can be.
    """

    def __init__(
        self,
        repo_id: str,
        every: int = 10,
        token: str | None = None,
        private: bool = False,
        *,
        wait: float = 300.0,
        say: Callable[[str], None] = print,
    ) -> None:
        _check_arguments(repo_id, every)
        self.repo_id, self.every, self.wait, self.say = repo_id, every, wait, say
        self._account: dict[str, Any] = {"repo_id": repo_id, "private": private, "token": usable_token(token)}
        self._process: HubProcess | None = None
        self._sending: tuple[Path, int] | None = None  # the run and the epoch that are under way
        self._sent: tuple[Path, int] | None = None  # ... that the Hub is known to hold
        self._url = ""  # of the newest commit
        self._due = False
        self._problem, self._failures, self._not_before = Outcome(), 0, 0.0
        if problem := self._look():
            say(f"{repo_id} on the Hub is out of reach ({problem}): tried again when a commit is due")

    def fetch(self, run: RunFolder, identity: dict[str, Any]) -> bool:
        """Bring the run from this repository into its empty folder, which is locked, if it is the one that trains.

        A Hub that is out of reach is said, not raised.

        Raises:
            RunError: what the repository holds of this run is damaged.
        """
        problem = "it is out of reach"
        try:
            if self._checked:
                return receive_run(self.repo_id, run, self._account["token"], identity=identity)
        except HubError as error:
            raise RunError(f"{error}, or train into another repository") from error
        except ConnectionError as error:
            problem = str(error)
        self.say(f"whether {self.repo_id} holds epochs to go on from is unknown ({problem}): starting without")
        return False

    def after_epoch(self, run: RunFolder, log: EpochLog) -> None:
        """Tell how the upload under way has ended, if it has, and start the next one if it is due."""
        self._collect()
        self._due = self._due or log[-1].epoch % self.every == 0
        self._start(run, log)

    def finish(self, run: RunFolder, log: EpochLog) -> None:
        """Send the last epoch, wait for it at most `wait` seconds, and say what is not on the Hub, if anything."""
        try:
            self._send_last(run, log)
        finally:  # also after Ctrl-C, which ends the waiting
            if self._sent != (run.path, log[-1].epoch):
                command = f"python -m s8lib publish --run {shlex.quote(str(run.path))} --hub-repo {self.repo_id}"
                self.say(f"epoch {log[-1].epoch} is NOT on the Hub; send it with: {command}")

    def publish(self, run: RunFolder, exports: Sequence[Export] = ()) -> str:
        """Send what a run folder holds, and wait for it at most `wait` seconds; the address of the commit.

        Args:
            exports: of its best weights, in other formats; a commit without them removes those of an earlier one.
        Raises:
            RunError: the folder holds no epoch, or another process is training in it.
            HubError: the Hub refuses it.
            ConnectionError: the Hub could not be reached, or did not take it in time.
        """
        if (last := run.last_epoch()) is None:
            raise RunError(f"{run.path} holds no finished epoch: train there first")
        if not self._checked and (problem := self._look()):
            raise ConnectionError(f"{self.repo_id} on the Hub is out of reach ({problem}): nothing was sent")
        with run.lock():
            try:
                rows = EpochLog.read(run.path / "epoch_log.csv")
            except ValueError as error:
                raise RunError(str(error)) from error
            # A kill between log and manifest leaves the row of an epoch that was never completely saved.
            self._sent = None
            self._send_last(run, EpochLog(row for row in rows if row.epoch <= last), exports)
        if self._sent != (run.path, last):
            what = f"epoch {last} is not on the Hub: {self._problem.error or f'no end of it in {self.wait:.0f} s'}"
            raise HubError(what) if self._problem.permanent else ConnectionError(what)
        return self._url

    def _look(self) -> str:
        """See that the token may publish to the repository, which is made if need be; why that is not known."""
        look = HubProcess(self._account | {"check": True}, CHECK_LIMIT).wait()
        if look.permanent:
            raise HubError(look.error)
        self._checked = not look.error
        return look.error

    def _send_last(self, run: RunFolder, log: EpochLog, exports: Sequence[Export] = ()) -> None:
        epoch, deadline = log[-1].epoch, time.monotonic() + self.wait
        self._due = (run.path, epoch) not in (self._sent, self._sending)
        self._failures, self._not_before = 0, 0.0  # the last chance does not wait for a pause of before
        try:
            what = f"epoch {epoch} to {self.repo_id}, for at most {self.wait:.0f} s"
            with progress_bar(range(round(self.wait / TICK)), what, only_time=True) as ticks:
                for _ in ticks:
                    self._collect()
                    self._start(run, log, exports)
                    if not self._process and (not self._due or self._not_before > deadline):
                        return
                    time.sleep(TICK)
        finally:
            if self._process:
                self._process.end()
                self._process = self._sending = None
                unstage(run.path)

    def _start(self, run: RunFolder, log: EpochLog, exports: Sequence[Export] = ()) -> None:
        """Start sending the newest state, if it is time."""
        if not self._due or self._process or time.monotonic() < self._not_before:
            return
        self._due = False
        try:
            now = snapshot(run, log, self.repo_id, exports)
            job = {"check": not self._checked, "message": now.message, "sha256": now.sha256}
            self._process = HubProcess(self._account | job | {"files": stage(now, run)}, UPLOAD_LIMIT)
            self._sending = run.path, log[-1].epoch
        except (OSError, RuntimeError, ValueError) as error:  # a full disk, a damaged file, a card that fails
            self._failed(log[-1].epoch, Outcome(error=str(error)))

    def _collect(self) -> None:
        """See whether the upload under way has ended, and how."""
        if not self._process or not self._sending or not (outcome := self._process.outcome()):
            return
        sent, self._process, self._sending = self._sending, None, None
        unstage(sent[0])
        if outcome.error:
            self._failed(sent[1], outcome)
            return
        self._checked, self._sent, self._url, self._failures = True, sent, outcome.url, 0
        self.say(f"epoch {sent[1]} is on the Hub: {outcome.url}")

    def _failed(self, epoch: int, outcome: Outcome) -> None:
        self._problem = outcome
        if outcome.permanent:
            self._due = False
            then = "it is tried again with the next commit"
        else:
            self._due = True
            pause = max(outcome.retry_after, min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE))
            self._failures += 1
            self._not_before = time.monotonic() + pause
            then = f"it is tried again in {pause:.0f} s or later"
        self.say(f"epoch {epoch} could not be sent to {self.repo_id} ({outcome.error}); {then}")


def _check_arguments(repo_id: str, every: int) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        named = "/" in repo_id
    except HFValidationError:
        named = False
    if not named:
        raise HubError(
            f"{repo_id!r} is no name of a repository: write USER/NAME, in letters, digits, '-', '_', '.'"
        )
    if every < 1:
        raise HubError(f"every = {every}: must be at least 1 epoch")


def usable_token(token: str | None = None) -> str:
    """The token given, or this machine's; asked for here, as Colab gives its secrets to the main thread only.

    Raises:
        HubError: there is none, or it cannot be one.
    """
    from huggingface_hub import get_token

    token = (token or get_token() or "").strip()
    if not token:
        raise HubError(
            "publishing needs a token of the Hugging Face Hub: set HF_TOKEN (on Colab, the secret of that name), "
            "or run `hf auth login`"
        )
    if not re.fullmatch(r"[\w.~+/=:-]+", token, re.ASCII):  # the client would quote it in its error
        raise HubError(
            "this token holds a character that no token of the Hub has: was it copied whole, and alone?"
        )
    return token
