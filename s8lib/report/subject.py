"""A run as its artifacts see it: log, recipe, weights, data, answers; and in numbers, for report.json."""

import dataclasses
import math
import os
import statistics
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from s8lib.data.cifar100 import CIFAR100_FINGERPRINT, Cifar100
from s8lib.data.synthetic import SYNTHETIC, choose_data
from s8lib.models.networks import Network, build_model, load_model
from s8lib.recipe import Recipe
from s8lib.report.mistakes import Evaluation, evaluation
from s8lib.run.folder import RunFolder
from s8lib.run.log import EpochLog

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
    with torch.device("meta"):  # counted, not drawn: weights would take time and random numbers
        model = build_model(of.recipe.model, of.run.num_classes)
    if of.given is None:
        again = _measured_before(of)
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
        "best": dataclasses.asdict(of.log.best),
        "best_chosen_on": of.log.chosen_on,
        "minutes": of.log.minutes,
        "images_per_s": statistics.median(row.images_per_s for row in of.log),
        **({"best_measured_again": again} if again else {}),
    }


def _measured_before(of: Subject) -> dict[str, Any]:
    """What report.json already holds of the best epoch, if it does."""
    try:
        before = of.run.read_json("report.json", default={})
        known = dict(before.get("best_measured_again", {}))
        return known if known and before["best"]["epoch"] == of.log.best.epoch else {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        of.run.say(f"{of.run.path / 'report.json'} is damaged ({error}): it is written anew, from the log alone")
        return {}
