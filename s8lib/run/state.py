"""The state of a training run: what a checkpoint holds, and whether one belongs to this run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from s8lib.data.cifar100 import Cifar100
from s8lib.models.networks import Network
from s8lib.models.weights import save_model
from s8lib.recipe import Recipe
from s8lib.run.folder import RunError, RunFolder
from s8lib.run.log import EpochLog


@dataclass
class TrainState:
    """All that changes while training; schedules, data order and noise are functions of the epoch instead."""

    model: Network
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    log: EpochLog
    identity: dict[str, Any]  # the recipe, the model and the data that this state is of

    def save(self, run: RunFolder) -> None:
        """Write the checkpoint of the log's last epoch, and `best/` if that epoch is the best so far."""
        checkpoint = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "log": self.log.to_dicts(),
        }
        is_best = self.log.best is self.log[-1]
        save_best = partial(save_model, self.model) if is_best else None
        run.save(self.log[-1].epoch, checkpoint, self.log.to_csv(), save_best)

    def restore(self, checkpoint: dict[str, Any], run: RunFolder | None) -> None:
        """Take over a checkpoint's state; `run`, on the rank that writes, is its folder.

        Raises:
            RunError: if it is of another recipe, model or data; lists what differs.
        """
        differing = differences(checkpoint["identity"], self.identity)
        if differing:
            raise RunError(
                f"this run folder holds another run: {'; '.join(differing)}. Use those values to go on with it, "
                "or another run folder"
            )
        self.log = EpochLog.from_dicts(checkpoint["log"])
        if run:
            self._restore_best(run)
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = self.optimizer.defaults["fused"]  # the saving device's may not be this one's
        if checkpoint["scaler"]:  # empty after bf16 or fp32, where nothing is scaled
            self.scaler.load_state_dict(checkpoint["scaler"])

    def _restore_best(self, run: RunFolder) -> None:
        # `best/` may be damaged, or hold an epoch that the log does not: the newest checkpoint was the best so
        # far and is damaged, and an older one is resumed.
        with contextlib.suppress(RunError):
            held = run.best_weights()
            if held and held[0] == self.log.best.epoch:
                return
        checkpoint = run.checkpoint(self.log.best.epoch)
        if checkpoint is None:
            run.say(f"{run.best} does not hold epoch {self.log.best.epoch}; the next better epoch will replace it")
            return
        self.model.load_state_dict(checkpoint["model"])
        run.save_best(self.log.best.epoch, partial(save_model, self.model))


def fresh_state(
    recipe: Recipe, model: Network, device: torch.device, precision: str, identity: dict[str, Any]
) -> TrainState:
    """The state before the first step, with the recipe's optimizer for a model that is on `device` already."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.at(0).lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=device.type in ("cuda", "cpu"),
    )
    for parameter in model.parameters():
        # Left to itself, fused SGD takes uninitialised memory, and keeps it if the first fp16 step overflows.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return TrainState(model, optimizer, scaler, EpochLog(), identity)


def identity_of(recipe: Recipe, model: Network, data: Cifar100, holdout: int) -> dict[str, Any]:
    """What two runs must share for one to go on with the other's checkpoint; primitives only."""
    return {
        "recipe": recipe.to_dict(),
        "model": {"name": model.name, "num_classes": model.config["num_classes"]},
        "data": {"sha256": data.fingerprint(), "holdout": holdout},
    }


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """One phrase for each value in which two identities differ; a recipe's name is no difference."""
    there = there | {"recipe": Recipe.from_dict(there["recipe"]).to_dict()}  # fields it did not have yet
    return [
        f"{part} {key} is {there[part].get(key)!r} there and {here[part].get(key)!r} here"
        for part in here
        for key in sorted(there[part].keys() | here[part].keys())
        if there[part].get(key) != here[part].get(key) and (part, key) != ("recipe", "name")
    ]
