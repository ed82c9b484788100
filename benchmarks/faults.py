"""What becomes of a run that is hit by faults: `python -m benchmarks.faults --count 200 --seed 1`.

Each trial is a small real training by the command line. A preloaded library (injection.c) kills, stops or
interrupts its processes at one file operation, or refuses that operation; or files are damaged between two starts.
The same command is given until it ends. The trial is exact if then

- weights, momentum, log, best weights and best epoch equal the uninterrupted run's, bit for bit;
- every start went on from the newest complete save, or said why not;
- no temporary file is left, there are at most five checkpoints, the manifest names what is there, and it verifies;
- no output has a traceback, and every exit code is the promised one.

Prints the table kind x tried x exact and, of each trial that was not exact, what happened in it. `--only NUMBER`
repeats that one. Exit code 1 if any was not exact. Needs Linux and a C compiler; the small disk is a tmpfs, and
that kind is left out where mounting one is not allowed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import errno
import functools
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import s8lib as s8
from benchmarks.injection import AFTER, BEFORE, INSIDE, Fault, may_mount, mount, preload, small_disk
from benchmarks.trial import HITS, KILLED, RECIPE, STOPPED, NotExact, Trial, learn
from s8lib.run.drive import MANIFESTS, DriveFolder
from s8lib.run.reading import RunReader
from s8lib.run.save import CONFIG, LOG, MANIFEST, WEIGHTS, holds, places

YEAR = 365 * 24 * 3600


def killed(trial: Trial, moment: int) -> None:
    """Killed before, inside or after an operation, again and again."""
    for _ in range(HITS):
        code, _ = trial.run(0, KILLED, fault=trial.a_fault(moment=moment, signal=signal.SIGKILL))
        if code == 0:
            break
    trial.run()
    trial.check()


def killed_with_a_drive(trial: Trial, where: str, lost: bool) -> None:
    """Killed while a copy goes to the Drive; the machine may be lost with its disk."""
    trial.with_drive = True
    for _ in range(HITS):
        moment = trial.random.choice((BEFORE, INSIDE, AFTER))
        trial.run(0, KILLED, fault=trial.a_fault(where, moment=moment, signal=signal.SIGKILL))
        if lost:
            shutil.rmtree(trial.disk, ignore_errors=True)
    trial.run()
    trial.check()


def interrupted(trial: Trial) -> None:
    """Ctrl-C and SIGTERM."""
    trial.with_drive = trial.random.random() < 0.3
    for _ in range(HITS):
        number, code = trial.random.choice(((signal.SIGINT, 130), (signal.SIGTERM, 143)))
        trial.run(0, code, fault=trial.a_fault(moment=trial.random.choice((BEFORE, AFTER)), signal=number))
    trial.run()
    trial.check()


def full_disk(trial: Trial) -> None:
    """No space from an operation on, then space again."""
    for _ in range(HITS):
        code, output = trial.run(0, 1, 2, fault=trial.a_fault(error=errno.ENOSPC))
        if code and not re.search("disk is full|No space left", output):
            raise NotExact("a full disk is not named")
    trial.run()
    trial.check()


def too_small_disk(trial: Trial) -> None:
    """A file system that the run really fills, then a larger one."""
    with small_disk(trial.disk, trial.random.randint(200, 5000)):
        code, output = trial.run(0, 1, 2)
        if code and "disk is full" not in output:
            raise NotExact("a full disk is not named")
        mount("-o", "remount,size=64m", trial.disk)
        trial.run()
        trial.check()


def failing_drive(trial: Trial) -> None:
    """A Drive that is full or disconnected from an operation on: training goes on, and it is made good later."""
    trial.with_drive = True
    code, output = trial.run(fault=trial.a_fault("drive", error=trial.random.choice((errno.ENOSPC, errno.EIO))))
    if "fault: " in output and "NOT there" not in output and "holds the checkpoints" not in output:
        raise NotExact("whether the Drive holds the run is not said")
    trial.run()
    trial.check()


def damaged(trial: Trial) -> None:
    """Any file of the run folder is damaged, in mid-run or after the end."""
    _some_epochs(trial)
    here = RunReader(trial.disk).manifest()
    (trial.disk / "report.json").write_text("{}")
    newest = here.checkpoints.get(here.epoch, MANIFEST)
    known = [newest, MANIFEST, WEIGHTS, CONFIG, LOG, "recipe.json", "environment.json", "report.json"]
    every = [str(path.relative_to(trial.disk)) for path in sorted(trial.disk.rglob("*"))]
    others = [name for name in every if ".new" in name or ".partial" in name]
    names = [name for name in known + others if (trial.disk / name).is_file()]
    name = names[trial.turn % len(names)]
    content = trial.damage(trial.disk / name)
    if name == MANIFEST and (here.epoch or (trial.disk / name).exists()):
        _refused(trial, MANIFEST)
        (trial.disk / name).write_bytes(content)
    elif name == newest and len(here.checkpoints) == 1:
        _refused(trial, "is intact")
        (trial.disk / name).write_bytes(content)
    trial.run()
    trial.check()


def damaged_drive(trial: Trial) -> None:
    """The machine is lost, and a file on the Drive is damaged."""
    trial.with_drive = True
    _some_epochs(trial)
    shutil.rmtree(trial.disk)
    there = DriveFolder(trial.drive).manifest()
    known = [*MANIFESTS, LOG, *there.best(), "recipe.json", "environment.json"]
    names = [n for n in [*known, there.checkpoints.get(there.epoch, MANIFEST)] if (trial.drive / n).is_file()]
    if names:
        name = names[trial.turn % len(names)]
        content = trial.damage(trial.drive / name)
        if trial.newest_save(trial.disk) is None:
            _refused(trial, "no manifest that names them")
            (trial.drive / name).write_bytes(content)
        elif name in there.checkpoints.values() and len(there.checkpoints) == 1:
            _refused(trial, "is intact")
            (trial.drive / name).write_bytes(content)
    trial.run()
    trial.check()


def clock_set_back(trial: Trial) -> None:
    """Each process has another wrong time, and so have the files."""
    for _ in range(HITS):
        clock = trial.random.randint(-50 * YEAR, 10 * YEAR)
        code, _ = trial.run(0, KILLED, fault=trial.a_fault(moment=AFTER, signal=signal.SIGKILL, clock=clock))
        for path in trial.disk.rglob("*"):
            os.utime(path, (trial.random.randint(0, 60 * YEAR),) * 2)
    trial.run(fault=Fault(clock=-YEAR))
    trial.check()


def two_processes(trial: Trial) -> None:
    """One is stopped, another is started in the same folder, the first goes on."""
    first = trial.start(trial.a_stop("disk", "open .lock"))
    if first.wait() != STOPPED:
        raise NotExact("it was to be stopped")
    _refused(trial, "another process is training")
    os.kill(first.pid, signal.SIGCONT)
    trial.end(first, 0)
    trial.check()


def two_machines(trial: Trial) -> None:
    """One is stopped, another goes on from the Drive, the first wakes up and must stop, having damaged nothing."""
    trial.with_drive = True
    begun = {"disk with Drive": "mkdir .new/checkpoints", "drive": "open manifest.json"}  # the first save
    where = trial.random.choice(list(begun))
    older = trial.start(trial.a_stop(where, begun[where]))
    if older.wait() != STOPPED:
        raise NotExact("it was to be stopped")
    may_end = DriveFolder(trial.drive).manifest().epoch == RECIPE.epochs  # has only to tidy up
    other = trial.disk.with_name("other")
    newer = trial.start(disk=other)
    if trial.random.random() < 0.5:
        trial.end(newer, 0)
    else:
        newer.wait_for("on cpu in|is finished")  # has claimed the run
    os.kill(older.pid, signal.SIGCONT)
    code, output = trial.end(older, *((0, 1) if may_end else (1,)))
    if code and "another machine goes on with the run" not in output:
        raise NotExact("the older machine does not say why it stops")
    if not newer.ended:
        trial.end(newer, 0)
    there = DriveFolder(trial.drive).manifest().files
    large = [name for name in there if "/" in name]  # a resume makes the small ones anew
    if wrong := [n for n in large if not any(holds(trial.drive / at, there[n]) for at in places(n))]:
        raise NotExact(f"on the Drive, but damaged: {wrong}")
    shutil.rmtree(other)  # lost: the Drive alone has what it has saved
    trial.run(disk=other)
    trial.check(other)


def _some_epochs(trial: Trial) -> None:
    """Train to the end, or to a kill."""
    if trial.random.random() < 0.7:
        fault = trial.a_fault(moment=trial.random.choice((BEFORE, AFTER)), signal=signal.SIGKILL)
        trial.run(0, KILLED, fault=fault._replace(nth=trial.random.randint(1, 7)))
    else:
        trial.run()


def _refused(trial: Trial, words: str) -> None:
    _, output = trial.run(2)
    if words not in output:
        raise NotExact(f"the refusal does not say {words!r}")


KINDS: dict[str, Callable[[Trial], None]] = {
    "killed before an operation": functools.partial(killed, moment=BEFORE),
    "killed inside a write": functools.partial(killed, moment=INSIDE),
    "killed after an operation": functools.partial(killed, moment=AFTER),
    "killed while copying to Drive": functools.partial(killed_with_a_drive, where="disk with Drive", lost=False),
    "killed in an operation on Drive": functools.partial(killed_with_a_drive, where="drive", lost=False),
    "machine lost, back from Drive": functools.partial(killed_with_a_drive, where="drive", lost=True),
    "Ctrl-C and SIGTERM": interrupted,
    "full disk": full_disk,
    "small disk": too_small_disk,
    "full or failing Drive": failing_drive,
    "damage on the disk": damaged,
    "damage on Drive": damaged_drive,
    "clock set back": clock_set_back,
    "two processes on one disk": two_processes,
    "two machines on one Drive": two_machines,
}


class Result(NamedTuple):
    """Of one trial: why it was not exact, with all that happened in it; the operations that were hit."""

    number: int
    problem: str
    struck: set[str]


class Known(NamedTuple):
    """What every trial is given."""

    data: s8.Cifar100
    operations: dict[str, dict[str, int]]
    expected: dict[str, object]


def try_one(number: int, kinds: Sequence[str], seed: int, known: Known) -> Result:
    """The trial of this number."""
    random = Random(f"{seed} {number}")
    kind = kinds[number % len(kinds)]
    with tempfile.TemporaryDirectory(prefix="fault") as folder:
        trial = Trial(Path(folder), known.data, number // len(kinds), random, known.operations, known.expected)
        try:
            KINDS[kind](trial)
        except (NotExact, s8.RunError, OSError) as error:
            trial.close()
            return Result(number, "\n".join([f"--- {number}, {kind}: {error}", *trial.history]), trial.struck)
    return Result(number, "", trial.struck)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=len(KINDS), help="of trials; the kinds take turns")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of the trials to repeat")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at a time")
    options = parser.parse_args(arguments)
    preload("benchmarks.faults")
    started = time.monotonic()
    data = s8.synthetic_cifar100(train=40, test=12)
    with tempfile.TemporaryDirectory(prefix="fault") as folder:
        known = Known(data, *learn(Path(folder), data))
    kinds = [kind for kind in KINDS if kind != "small disk" or may_mount()]
    numbers = options.only if options.only is not None else range(options.count)
    tried, exact, struck = Counter[str](), Counter[str](), set[str]()
    with concurrent.futures.ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as workers:
        doing = functools.partial(try_one, kinds=kinds, seed=options.seed, known=known)
        for result in workers.map(doing, numbers):
            kind = kinds[result.number % len(kinds)]
            tried[kind] += 1
            exact[kind] += not result.problem
            struck |= result.struck
            if result.problem:
                print(result.problem, flush=True)
    for kind in kinds:
        print(f"{kind:32} {tried[kind]:5} tried {exact[kind]:5} exact")
    print(f"{'all':32} {tried.total():5} tried {exact.total():5} exact in {time.monotonic() - started:.0f} s")
    every = set().union(*known.operations.values())
    print(f"{len(every & struck)} of {len(every)} different file operations were struck")
    return int(exact != tried)


if __name__ == "__main__":
    sys.exit(main())
