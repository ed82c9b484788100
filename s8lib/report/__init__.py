"""What a run looks like: tables, pictures, the film and the model card, made from what the run left on disk.

`ARTIFACTS` below is the one list of the files. A new picture is a function in a file of its own and a row there.
"""

# ruff: noqa: F401  what is imported here and not used here is public

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from s8lib.data.cifar100 import CIFAR100_FINGERPRINT, Cifar100
from s8lib.data.synthetic import SYNTHETIC, choose_data
from s8lib.machine.progress import Table, tell
from s8lib.models.networks import Network, load_model
from s8lib.recipe import Recipe
from s8lib.report.card import make_card
from s8lib.report.figures import Figure, save
from s8lib.report.images import guesses, sample_grid
from s8lib.report.knobs import schedule, schedule_table
from s8lib.report.mistakes import (
    Evaluation,
    class_accuracy,
    confident_mistakes,
    evaluation,
    reliability,
    superclass_confusion,
    worst_classes,
)
from s8lib.report.network import layer_figure, summary
from s8lib.report.tables import epoch_table, overview, read, reference_runs, size
from s8lib.report.training_curves import LiveCurves, curves, video
from s8lib.run.checkpoint import EpochLog
from s8lib.run.folder import RunFolder

FILM = "epoch_log.mov"
FORMAT = 1  # of report.json


def data_of(run: RunFolder, where: str | Path | None = None, download: bool = True) -> Cifar100:
    """What a run was trained on and is measured on: in the folder `where`, if it is given.

    Else it is CIFAR-100, as `choose_data` finds it, or the stand-in, or one's own pictures in $S8_DATA.

    Raises:
        RunError: the data there are others than the run's.
        DataError: there are none, or they cannot be used.
    """
    if where is None and run.data_fingerprint not in (None, CIFAR100_FINGERPRINT):
        stand_in = choose_data(SYNTHETIC)
        if stand_in.fingerprint() == run.data_fingerprint:
            return stand_in
        where = os.environ.get("S8_DATA") or SYNTHETIC
    data = choose_data(where, download=download)
    run.refuse_other_data(data)
    return data


class NoData(Exception):
    """An artifact shows images or answers to them, and `write` was given no data."""


@dataclasses.dataclass
class Subject:
    """What artifacts are made of; what takes time is made when the first of them asks for it."""

    run: RunFolder
    log: EpochLog
    target: float | None = None
    given: Cifar100 | None = None
    device: str | torch.device | None = None
    precision: str = "auto"

    @cached_property
    def recipe(self) -> Recipe:
        return self.run.recipe()

    @cached_property
    def model(self) -> Network:
        return load_model(self.run.best_weights()[1])

    @property
    def data(self) -> Cifar100:
        if self.given is None:
            raise NoData
        return self.given

    @cached_property
    def evaluation(self) -> Evaluation:
        return evaluation(self.model, self.data, self.device, self.precision)


def numbers(of: Subject) -> dict[str, Any]:
    """What report.json holds: percent, nats, seconds, images/s."""
    model = Network.without_weights(str(of.run.best_weights()[1]))  # to be counted: draws no random numbers
    best = dataclasses.asdict(of.log.best)
    if of.given is None:
        before = of.run.read_json("report.json", default={})
        again = before.get("best_measured_again") if before.get("best") == best else None
    else:
        again = dataclasses.asdict(of.evaluation.metrics)
        top1 = (None if math.isnan(accuracy) else accuracy for accuracy in again["per_class"])
        again["per_class"] = dict(zip(of.evaluation.classes, top1, strict=True))
    return {
        "format": FORMAT,
        "recipe": of.recipe.to_dict(),
        "model": {"name": model.name, "parameters": sum(p.numel() for p in model.parameters())},
        "sessions": of.run.sessions(),
        "epochs_done": len(of.log),
        "final": dataclasses.asdict(of.log[-1]),
        "best": best,
        "best_chosen_on": of.log.chosen_on,
        "minutes": of.log.minutes,
        "images_per_s": statistics.median(row.images_per_s for row in of.log),
        **({"best_measured_again": again} if again else {}),
    }


class Artifact(NamedTuple):
    """A file of a run's folder: what it is, and how it is made, unless training or exporting leaves it."""

    what: str
    make: Callable[[Subject], Figure | dict[str, Any] | Path] | None = None


ARTIFACTS = {
    "checkpoints": Artifact("what a resume needs, the newest epochs"),
    "best": Artifact("the best weights: config.json + model.safetensors, for from_pretrained"),
    "recipe.json": Artifact("every setting of the training"),
    "environment.json": Artifact("the machines it ran on"),
    "manifest.json": Artifact("names, sizes and sha256 of what is complete"),
    "epoch_log.csv": Artifact("the log, one row an epoch"),
    FILM: Artifact("the log as a video", lambda of: video(of.log, of.recipe, of.run.path / FILM)),
    "graph.jpg": Artifact("accuracy, loss and learning rate", lambda of: curves(of.log, of.recipe, of.target)),
    "schedule.png": Artifact("the schedule", lambda of: schedule(of.recipe)),
    "samples.png": Artifact("training images, augmented", lambda of: sample_grid(of.data, of.recipe)),
    "param_1.png": Artifact("the network's layers, first half", lambda of: layer_figure(of.model, 1)),
    "param_2.png": Artifact("the network's layers, second half", lambda of: layer_figure(of.model, 2)),
    "confusion.png": Artifact("what is taken for what", lambda of: superclass_confusion(of.evaluation)),
    "classes.png": Artifact("the accuracy of every class", lambda of: class_accuracy(of.evaluation)),
    "worst_classes.png": Artifact("the classes it knows least", lambda of: worst_classes(of.evaluation)),
    "mistakes.png": Artifact("its most confident mistakes", lambda of: confident_mistakes(of.evaluation)),
    "reliability.png": Artifact("whether its confidence can be trusted", lambda of: reliability(of.evaluation)),
    "report.json": Artifact("every number", numbers),
    "model.onnx": Artifact("the best weights as ONNX"),
    "model.pt2": Artifact("the best weights as a torch.export program"),
}


def write(
    run: RunFolder | str | Path,
    data: Cifar100 | None = None,
    *,
    target: float | None = None,
    film: bool = True,
    device: str | torch.device | None = None,
    precision: str = "auto",
    say: Callable[[str], None] = tell,
) -> dict[str, Path]:
    """Write every artifact that can be made into `run`; the path of each by its name.

    Without `data` nothing is measured, and no images are shown. What needs a package that is not installed is left
    out and told.

    Args:
        data: what the run was trained on; its best weights are measured anew on the test set.
        target: a test accuracy in percent, drawn as a line.
        film: make epoch_log.mov, which takes some tenths of a second an epoch.
    Raises:
        RunError: if `run` holds no finished epoch, is damaged, or was trained on other data.
    """
    run = RunFolder(run) if isinstance(run, str | Path) else run
    run.best_weights()  # raises, if it cannot be used, before anything is written
    if data is not None:
        run.refuse_other_data(data)
    names = [name for name, artifact in ARTIFACTS.items() if artifact.make and name != FILM]
    of = Subject(run, run.log(), target, data, device, precision)
    return _make(of, names + [FILM] * film, say)  # the film last: it takes longest, and another program makes it


def write_log(run: RunFolder, log: EpochLog, target: float | None = None) -> dict[str, Path]:
    """Write only what nothing is measured for, graph.jpg and report.json, in about a second; RunError as `write`.

    What report.json holds of an earlier measurement of the same best epoch stays in it.
    """
    return _make(Subject(run, log, target), ("report.json", "graph.jpg"), run.say)


def _make(of: Subject, names: Iterable[str], say: Callable[[str], None]) -> dict[str, Path]:
    written = {}
    for name in names:
        make, path = ARTIFACTS[name].make, of.run.path / name
        try:
            made = make(of) if make else None
        except NoData:
            continue
        except ImportError as error:
            say(f"{name} is left out: {error}")
            continue
        if isinstance(made, Figure):
            save(made, path)
        elif isinstance(made, dict):
            of.run.write_json(name, made)
        written[name] = path
    return written


def contents(run: RunFolder) -> Table:
    """What a run's folder holds, with sizes, a line each."""
    lines = []
    for name, artifact in ARTIFACTS.items():
        path = run.path / name
        if not path.exists():
            continue
        files = sorted(path.glob("*")) if path.is_dir() else [path]
        lines.append(f"{name:<18} {size(sum(file.stat().st_size for file in files)):>9}   {artifact.what}")
        if name == "checkpoints":
            lines += [f"  {file.name:<16} {size(file.stat().st_size):>9}" for file in files]
    return Table("\n".join(lines))
