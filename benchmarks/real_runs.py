"""A real run, from an empty machine to finished artifacts: `python -m benchmarks.real_runs train RECIPE MODEL`.

It needs no network. Cut at any moment, it goes on when the same command is run again; once trained, it only makes
the artifacts anew. README.md here says how to use it on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import s8lib as s8
from benchmarks.checkout import commit_of_checkout
from benchmarks.performance import matrix_rate, peak_memory_gib, speed_of, training_flops
from s8lib.data.synthetic import SYNTHETIC
from s8lib.machine.device import pick_device
from s8lib.run.save import replacing

RECORDS = ("epoch_log.csv", "recipe.json", "environment.json")  # what training itself leaves of a result
SESSIONS = "sessions.json"
TARGETS = {"seed-100": 75.0, "seed-200": 82.0}  # the commission's, percent, top-1 on the test set


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes are the library's: 0 done, 1 a fault in mid-run, 2 bad input."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # whoever follows the log sees an epoch when it is done
    try:
        options.command(options)
    except (s8.RecipeError, s8.ModelError, s8.DataError, s8.DeviceError, s8.RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _train(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    recipe = s8.choose_recipe(options.recipe, model=options.model, seed=options.seed, epochs=options.epochs)
    data = s8.choose_data(options.data, download=False)
    model = s8.build_model(recipe.model, len(data.classes), recipe.at(0).dropout, seed=recipe.seed)
    run = s8.RunFolder(options.work / s8.run_name(recipe, data))
    commit = commit_of_checkout()
    session = Session(run, device)

    def after_epoch(log: s8.EpochLog) -> None:
        session.note(log[-1].epoch)
        _copy(RECORDS, run.path, options.out)  # what a machine that is lost later leaves behind

    log = s8.train(
        recipe,
        model,
        data,
        run,
        device=device,
        precision=options.precision,
        compile=options.compile,
        deterministic=options.deterministic,
        watch=after_epoch,
    )
    _copy(RECORDS, run.path, options.out)
    measured = {
        "command": _command(options),
        "commit": commit,
        "performance": _performance(log, recipe, len(data.train), run.read_json(SESSIONS, default=[]), device),
        "final_measured_again": _metrics(s8.evaluate(model, data.test, device, options.precision)),
    }
    _write_json(options.out / "report.json", measured)  # first of all: what only this machine can measure
    s8.report.write(
        run, data, target=TARGETS.get(recipe.name), film=False, device=device, precision=options.precision
    )
    _write_json(options.out / "report.json", run.read_json("report.json", default={}) | measured)
    finish(options.out)
    print(f"artifacts in {options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")


def finish(out: Path) -> None:
    """Draw `graph.jpg` and `epoch_log.mov` from the log and recipe in `out`; told, if there is no ffmpeg here."""
    log, recipe = s8.EpochLog.read(out / "epoch_log.csv"), s8.Recipe.load(out / "recipe.json")
    s8.report.save(s8.report.curves(log, recipe, TARGETS.get(recipe.name)), out / "graph.jpg")
    try:
        s8.report.video(log, recipe, out / "epoch_log.mov")
    except ImportError as error:
        print(f"{error}; then, or elsewhere: python -m benchmarks.real_runs finish FOLDER-OF-THIS-RESULT")


def _finish(options: argparse.Namespace) -> None:
    for out in options.out:
        if not all((out / name).is_file() for name in RECORDS):
            raise s8.RunError(f"{out} does not hold {', '.join(RECORDS)}: name a folder that `train` made")
        finish(out)


class Session:
    """Notes in the run folder, after every epoch, what this process has trained, its seconds and its memory.

    `Epoch.seconds` holds neither the start, compiling included, nor saving; these seconds do.
    """

    def __init__(self, run: s8.RunFolder, device: torch.device) -> None:
        self.run, self.device = run, device
        self.earlier = run.read_json(SESSIONS, default=[])
        self.epochs: list[int] = []
        self.started = time.perf_counter()

    def note(self, epoch: int) -> None:
        self.epochs.append(epoch)
        now = {
            "epochs": self.epochs,
            "seconds": time.perf_counter() - self.started,
            "peak_memory_gib": peak_memory_gib(self.device),
        }
        self.run.write_json(SESSIONS, [*self.earlier, now])


def _performance(
    log: s8.EpochLog, recipe: s8.Recipe, images: int, sessions: list[dict[str, Any]], device: torch.device
) -> dict[str, Any]:
    matrix_precision, rate = matrix_rate(device)
    noted = {epoch for session in sessions for epoch in session["epochs"]}
    # An epoch that was saved and, by a cut, not noted counts with its own seconds.
    seconds = [session["seconds"] for session in sessions] + [row.seconds for row in log if row.epoch not in noted]
    return {
        "minutes": sum(seconds) / 60,
        "peak_memory_gib": max((session["peak_memory_gib"] for session in sessions), default=None),
        **speed_of(log, recipe, images, rate),
        "training_gflop_per_image": training_flops(recipe.model) / 1e9,
        "matrix_precision": matrix_precision,
        "matrix_tflop_per_s": rate / 1e12,
    }


def _metrics(metrics: s8.Metrics) -> dict[str, Any]:
    """Without the classes' accuracies, which the report holds for the best epoch."""
    return {name: value for name, value in dataclasses.asdict(metrics).items() if name != "per_class"}


def _command(options: argparse.Namespace) -> str:
    """What trains this again on any machine: without folders, which are this machine's."""
    given = ["train", options.recipe, options.model, "--seed", options.seed]
    if options.data == SYNTHETIC:
        given += ["--data", SYNTHETIC]
    for name in ("epochs", "precision", "compile"):
        if (value := getattr(options, name)) not in (None, "auto"):
            given += [f"--{name}", value]
    if options.deterministic:
        given.append("--deterministic")
    return shlex.join(["python", "-m", "benchmarks.real_runs", *map(str, given)])


def _copy(names: Iterable[str], source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        with replacing(target / name) as partial:
            shutil.copyfile(source / name, partial)


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_runs", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("train", help="train, or go on with, a run and leave its artifacts in --out")
    add = command.add_argument
    add("recipe", metavar="RECIPE", choices=s8.PRESETS, help=", ".join(s8.PRESETS))
    add("model", metavar="MODEL", help="wrn-28-10, resnet-42, resnet-11 or any wrn-D-K")
    add("--seed", type=int, default=0, metavar="N", help="of weights, data order and noise; default 0")
    add("--out", type=Path, required=True, metavar="DIR", help="the result, such as results/quick-cpu/seed-0")
    add("--work", type=Path, default=Path("runs"), metavar="DIR", help="where its run folder goes; default runs")
    add("--data", metavar="DIR|synthetic", help="CIFAR-100; default $S8_DATA or the cache")
    add("--epochs", type=int, metavar="N", help="stretch or shorten the recipe to N epochs, for a rehearsal")
    add("--device", help="such as cuda, cpu; default the best here")
    add("--precision", default="auto", help="auto, bf16, fp16 or fp32")
    add("--compile", default="auto", help="torch.compile: auto, on or off")
    add("--deterministic", action="store_true", help="equal runs are equal to the bit on a GPU too; slower")
    command.set_defaults(command=_train)
    command = commands.add_parser("finish", help="draw graph and video, for a machine that has no ffmpeg")
    command.add_argument("out", type=Path, nargs="+", metavar="DIR", help="a folder that `train` made")
    command.set_defaults(command=_finish)
    return parser


if __name__ == "__main__":
    sys.exit(main())
