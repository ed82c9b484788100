"""A training that is hit by faults, and whether it comes to what the uninterrupted one comes to; see faults.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import s8lib as s8
from benchmarks.injection import AFTER, INSIDE, Fault, damage
from s8lib import cli
from s8lib.run.checkpoint import Checkpoint
from s8lib.run.copies import Copies
from s8lib.run.drive import MANIFESTS, DriveFolder
from s8lib.run.folder import RunFolder
from s8lib.run.reading import RunReader
from s8lib.run.save import CONFIG, KEEP, LOG, WEIGHTS, Manifest, RunError, holds

HITS = 6  # faults of a trial, at most, one a process
LIMIT = 120  # seconds that a process may take
KILLED, STOPPED = -signal.SIGKILL, -signal.SIGSTOP  # as exit codes
# Seven epochs of two steps on small images; new best weights come with the first three.
RECIPE = s8.Recipe(
    name="faults",
    model="wrn-10-1",
    epochs=7,
    phase1_epochs=4,
    batch_size=20,
    warmup_epochs=1,
    cycle_epochs=2,
    patience=None,
    image_size=(8, 8),
    seed=5,
)


class NotExact(Exception):
    """Why a trial was not exact."""


@dataclass
class Process:
    """A training under way."""

    pid: int
    output: Path
    saved: int | None  # the epoch that it must go on from; None if that cannot be told
    ended: bool = False

    def wait(self) -> int:
        """Its exit code, the negative number of the signal that has killed it, or STOPPED."""
        status = os.waitpid(self.pid, os.WUNTRACED)[1]
        self.ended = not os.WIFSTOPPED(status)
        return os.waitstatus_to_exitcode(status) if self.ended else STOPPED

    def wait_for(self, words: str) -> None:
        """Wait until it has said something like this."""
        limit = time.monotonic() + LIMIT
        while not re.search(words, self.output.read_text() if self.output.exists() else ""):
            if time.monotonic() > limit:
                raise NotExact(f"it never said {words!r}")
            time.sleep(0.05)


class Trial:
    """A run on the disk of a machine, perhaps kept on a Drive, and what happens to it.

    Args:
        folder: everything is in it.
        number: of the trial among those of its kind; it chooses the operations that are hit, all of them in turn.
        operations, expected: what `learn` has found.
    """

    def __init__(
        self,
        folder: Path,
        data: s8.Cifar100,
        number: int = 0,
        random: Random | None = None,
        operations: dict[str, dict[str, int]] | None = None,
        expected: dict[str, Any] | None = None,
    ) -> None:
        self.data, self.random = data, random or Random(0)
        self.operations, self.expected = operations or {}, expected or {}
        self.turn = HITS * number
        self.disk, self.drive, self.with_drive = folder / "disk", folder / "My Drive" / "run", False
        self.drive.parent.mkdir(parents=True)
        self.recipe = folder / "recipe.json"
        self.recipe.write_text(json.dumps(RECIPE.to_dict()))
        self.processes, self.history, self.struck = list[Process](), list[str](), set[str]()

    def a_fault(self, where: str = "disk", **fields: Any) -> Fault:
        """A fault at an operation that a training does there."""
        operations = list(self.operations[where])
        if fields.get("moment") == INSIDE:
            operations = [operation for operation in operations if operation.startswith("write ")]
        return self._at(operations, where, 2, **fields)

    def a_stop(self, where: str, begun: str) -> Fault:
        """A fault that stops a process after the operation `begun`, when it has still to save."""
        operations = list(self.operations[where])
        operations = operations[operations.index(begun) :]
        operations = [operation for operation in operations if self.operations[where][operation]]
        return self._at(operations, where, RECIPE.epochs, moment=AFTER, signal=signal.SIGSTOP)

    def _at(self, operations: list[str], where: str, most: int, **fields: Any) -> Fault:
        self.turn += 1
        operation = operations[self.turn % len(operations)]
        nth = self.random.randint(1, max(1, min(most, self.operations[where][operation] - 2)))
        return Fault(self.drive if where == "drive" else self.disk, operation, nth, **fields)

    def start(self, fault: Fault | None = None, disk: Path | None = None) -> Process:
        """Give the command that trains, or goes on."""
        fault, disk = fault or Fault(), disk or self.disk
        output = self.recipe.with_name(f"output{len(self.processes)}")
        self.history.append(f"start on {disk.name}: {fault}")
        process = Process(os.fork(), output, self.newest_save(disk))
        if not process.pid:
            self._train(fault, disk, output)
        self.processes.append(process)
        return process

    def end(self, process: Process, *promised: int) -> tuple[int, str]:
        """Wait for the end of a process and check what it did; its exit code and output.

        Raises:
            NotExact: the exit code is none of those promised, or something else is wrong with it.
        """
        code, output = process.wait(), process.output.read_text()
        self.history.append(f"exit code {code}\n{output}")
        self.struck.update(re.findall("^fault: (.*)$", _general(output), re.MULTILINE))
        if code not in promised:
            raise NotExact(f"exit code {code} instead of {promised}")
        if "Traceback" in output or "Exception ignored" in output:
            raise NotExact("a traceback")
        if code in (1, 2) and len(re.findall("^error: ", output, re.MULTILINE)) != 1:
            raise NotExact(f"exit code {code} without its sentence")
        first = re.search(r"^epoch +(\d+)/", output, re.MULTILINE)
        if (
            process.saved is not None
            and first
            and int(first[1]) != process.saved + 1
            and "passed over" not in output
        ):
            raise NotExact(f"epoch {process.saved} was saved, and it began with epoch {first[1]}")
        return code, output

    def run(self, *promised: int, fault: Fault | None = None, disk: Path | None = None) -> tuple[int, str]:
        """`start` and `end`; exit code 0 is promised unless others are."""
        return self.end(self.start(fault, disk), *(promised or (0,)))

    def check(self, disk: Path | None = None) -> None:
        """See that the run has ended as the uninterrupted one has, and that nothing but the run is left."""
        disk = disk or self.disk
        here = RunReader(disk).manifest()
        names = {str(path.relative_to(disk)) for path in disk.rglob("*")} - {".lock", ".outgoing"}
        ours = {
            *here.files,
            "checkpoints",
            "best",
            "manifest.json",
            "recipe.json",
            "environment.json",
            "report.json",
        }
        if names - ours:
            raise NotExact(f"left on the disk: {sorted(names - ours)}")
        if wrong := [name for name, content in here.files.items() if not holds(disk / name, content)]:
            raise NotExact(f"not what the manifest says: {wrong}")
        if not {LOG, WEIGHTS, CONFIG} <= here.files.keys() or not 1 <= len(here.checkpoints) <= KEEP:
            raise NotExact(f"the manifest names {sorted(here.files)}")
        if differing := [key for key, value in outcome(disk).items() if value != self.expected[key]]:
            raise NotExact(f"not as in the uninterrupted run: {differing}")
        if self.with_drive:
            self._check_drive(here)

    def _check_drive(self, here: Manifest) -> None:
        there = DriveFolder(self.drive).manifest()
        files = (str(path.relative_to(self.drive)) for path in self.drive.rglob("*") if path.is_file())
        names = [name.replace("best.new/", "best/") for name in files]  # either may be where they are
        lasting = {"recipe.json", "environment.json"}  # damaged, they stay until a training writes them anew
        if left := Counter(names) - Counter([*there.files, *MANIFESTS, *lasting]):
            raise NotExact(f"on the Drive beside its manifest: {left}")
        ours = {here.checkpoints[RECIPE.epochs], *here.best(), LOG}
        if wrong := [name for name in ours if not holds(RunReader(self.drive).find(name), here.files[name])]:
            raise NotExact(f"not the same on the Drive: {wrong}")

    def damage(self, path: Path) -> bytes:
        """Damage a file; what it held."""
        what, content = damage(path, self.random)
        self.history.append(what)
        return content

    def close(self) -> None:
        """End what a trial that was not exact may have left running."""
        for process in self.processes:
            if not process.ended:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                self.history.append(f"ended here\n{process.output.read_text()}")

    def newest_save(self, disk: Path) -> int | None:
        """The epoch that a process must go on from, as far as the manifests tell."""
        try:
            epochs = [RunReader(disk).manifest().epoch]
            if self.with_drive:
                epochs.append(DriveFolder(self.drive).manifest().epoch)
            return max(epochs)
        except (RunError, OSError):
            return None

    def _train(self, fault: Fault, disk: Path, output: Path) -> NoReturn:
        """What a forked process does: the command, on the trial's data and with its Drive."""

        def run_folder(path: Path) -> RunFolder:
            return RunFolder(path, copies=[Copies(DriveFolder(self.drive), wait=60)] if self.with_drive else [])

        code = 70
        signal.alarm(LIMIT)
        try:
            file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            the_data = dict.fromkeys(("choose_data", "data_of"), lambda *_, **__: self.data)
            vars(s8).update(**the_data, RunFolder=run_folder)
            fault.arm()
            code = cli.main(["train", "--recipe", str(self.recipe), "--run", str(disk), "--compile", "off"])
        except BaseException:  # noqa: BLE001  # nothing may come out of a fork
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def outcome(disk: Path) -> dict[str, Any]:
    """All that must be equal of two runs that were trained to their ends."""
    manifest = RunReader(disk).manifest()
    last = Checkpoint.load(disk / manifest.checkpoints[manifest.epoch])
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in last.model.items()},
        "momentum": [entry["momentum_buffer"].numpy().tobytes() for entry in last.optimizer["state"].values()],
        "log": [replace(row, seconds=0.0, images_per_s=0.0) for row in last.log],
        "epoch_log.csv": (disk / LOG).read_text() == last.log.to_csv(),
        "best": (manifest.best_epoch, manifest.best()),
        "identity": last.identity,
        "arithmetic": last.arithmetic,
    }


def learn(folder: Path, data: s8.Cifar100) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Train without a fault: the operations that this takes, by where they are done, and the outcome.

    Each with how often it is done in a training from the start; 0 if it is done only when one goes on.
    """
    model = s8.build_model(RECIPE.model, seed=RECIPE.seed)
    s8.train(
        RECIPE, model, data, device="cpu", compile="off", say=lambda line: None
    )  # what torch makes once, forks have
    operations = dict[str, dict[str, int]]()
    for where in ("disk", "disk with Drive", "drive"):
        trial = Trial(folder / where, data)
        trial.with_drive = where != "disk"
        with open(folder / f"{where}.txt", "w+") as trace:
            watched = Fault(trial.drive if where == "drive" else trial.disk, trace=trace.fileno())
            trial.run(fault=watched)
            size = trace.seek(0, os.SEEK_END)
            if trial.with_drive:
                shutil.rmtree(trial.disk)  # so that it is seen what coming back takes
            trial.run(fault=watched)
            trial.expected = outcome(trial.disk)
            trial.check()
            trace.seek(0)
            text = trace.read()
        first, every = (_general(part).splitlines() for part in (text[:size], text))
        operations[where] = dict.fromkeys(every, 0) | Counter(first)
    return operations, trial.expected


def _general(operations: str) -> str:
    """The same for every epoch, and for every name that is made up."""
    return re.sub(r"(?<=epoch_)\d+|[0-9a-f]{32}|(?<=\.tmp)\w+", "*", operations)
