"""Everything that can be shown of a run, made from its folder and written into it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from s8lib.data.cifar100 import Cifar100
from s8lib.models.networks import Network, build_model, load_model
from s8lib.recipe import Recipe
from s8lib.report.architecture import architecture
from s8lib.report.curves import curves
from s8lib.report.evaluation import Evaluation, evaluation
from s8lib.report.mistakes import confident_mistakes, reliability, superclass_confusion, worst_classes
from s8lib.report.samples import sample_grid
from s8lib.report.schedule import schedule
from s8lib.report.style import save
from s8lib.report.summary import MissingPackage
from s8lib.report.video import video
from s8lib.run.folder import RunError, RunFolder
from s8lib.run.log import EpochLog, selector

FORMAT = 1  # of report.json


def write(
    run: RunFolder | str | Path,
    data: Cifar100 | None = None,
    *,
    target: float | None = None,
    film: bool = True,
    device: str | torch.device | None = None,
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Write graph.jpg, schedule.png, param_1.png, param_2.png, epoch_log.mov and report.json into `run`.

    With `data` the best weights are measured anew on the test set, and samples.png, confusion.png,
    worst_classes.png, mistakes.png and reliability.png are written too. What needs a package that is not
    installed is left out and told.

    Args:
        target: a test accuracy in percent, drawn as a line.
        film: make epoch_log.mov, which takes some tenths of a second an epoch.
    Returns:
        The path of each file by its name.
    Raises:
        RunError: if `run` holds no finished epoch, is damaged, or was trained on other data.
    """
    run = RunFolder(run) if isinstance(run, str | Path) else run
    recipe, log, model = read(run)
    if data is not None and not was_trained_on(run, data):
        raise RunError(f"{run.path} was trained on other data than {data.source}: measure it on the data it knows")
    measured = None
    pictures = {"schedule.png": schedule(recipe)}
    if data is not None:
        measured = evaluation(model, data, device, precision)
        pictures |= {
            "samples.png": sample_grid(data, recipe),
            "confusion.png": superclass_confusion(measured),
            "worst_classes.png": worst_classes(measured),
            "mistakes.png": confident_mistakes(measured),
            "reliability.png": reliability(measured),
        }
    written = write_log(run, log, target, measured)
    written |= {name: save(figure, run.path / name) for name, figure in pictures.items()}
    try:
        written["param_1.png"], written["param_2.png"] = architecture(model, run.path)
    except MissingPackage as error:
        say(f"param_1.png and param_2.png are left out: {error}")
    if film:
        try:
            written["epoch_log.mov"] = video(log, recipe, run.path / "epoch_log.mov")
        except MissingPackage as error:
            say(f"epoch_log.mov is left out: {error}")
    return written


def write_log(
    run: RunFolder, log: EpochLog, target: float | None = None, measured: Evaluation | None = None
) -> dict[str, Path]:
    """Write only what a log is enough for, graph.jpg and report.json; takes about a second.

    What report.json holds of an earlier measurement of the same best epoch stays in it.
    """
    recipe = Recipe.load(run.path / "recipe.json")
    numbers = numbers_of(run, recipe, log)
    if measured is not None:
        numbers["best_measured_again"] = _metrics(measured)
    else:
        before = run.read_json("report.json", default={})
        if "best_measured_again" in before and before["best"]["epoch"] == log.best.epoch:
            numbers["best_measured_again"] = before["best_measured_again"]
    run.write_json("report.json", numbers)
    graph = save(curves(log, recipe, target), run.path / "graph.jpg")
    return {"report.json": run.path / "report.json", "graph.jpg": graph}


def read(run: RunFolder) -> tuple[Recipe, EpochLog, Network]:
    """A run's recipe, its log and its best weights.

    Raises:
        RunError: if it holds no finished epoch, or a damaged log.
    """
    best = run.best_weights()
    if best is None:
        raise RunError(f"{run.path} holds no finished epoch: train there first")
    try:
        log = EpochLog.read(run.path / "epoch_log.csv")
    except (OSError, ValueError) as error:
        raise RunError(f"{error}: bring the file back") from error
    return Recipe.load(run.path / "recipe.json"), log, load_model(best[1])


def was_trained_on(run: RunFolder, data: Cifar100) -> bool:
    """Whether `data` is what the run was trained on, as far as its manifest knows."""
    identity = run.manifest()["identity"]
    return identity is None or identity["data"]["sha256"] == data.fingerprint()


def numbers_of(run: RunFolder, recipe: Recipe, log: EpochLog) -> dict[str, Any]:
    """What report.json holds of a log: percent, nats, seconds, images/s."""
    with torch.device("meta"):  # counted, not drawn: weights would take time and random numbers
        model = build_model(recipe.model)
    return {
        "format": FORMAT,
        "recipe": recipe.to_dict(),
        "model": {"name": model.name, "parameters": sum(p.numel() for p in model.parameters())},
        "sessions": run.read_json("environment.json", default=[]),
        "epochs_done": len(log),
        "final": dataclasses.asdict(log[-1]),
        "best": dataclasses.asdict(log.best),
        "best_chosen_on": selector(log.best.holdout_acc is not None),
        "minutes": sum(row.seconds for row in log) / 60,
        "images_per_s": statistics.median(row.images_per_s for row in log),
    }


def _metrics(measured: Evaluation) -> dict[str, Any]:
    numbers = dataclasses.asdict(measured.metrics)
    names = zip(measured.classes, numbers.pop("per_class"), strict=True)
    return numbers | {"per_class": {name: None if math.isnan(top1) else top1 for name, top1 in names}}
