"""Going on from a checkpoint: claim the folder, take the state over, and make `best/` fit the log."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch

from s8lib.models.networks import Network
from s8lib.models.weights import ModelError, load_strictly, save_model
from s8lib.run.checkpoint import Checkpoint
from s8lib.run.folder import RunFolder
from s8lib.run.log import EpochLog
from s8lib.run.save import RunError


def claim(
    run: RunFolder | None, identity: dict[str, Any], stack: contextlib.ExitStack
) -> Checkpoint | RunError | None:
    """Lock the run folder for this process; its newest checkpoint, or why it cannot be used, for every rank."""
    try:
        if run is None:
            return None
        stack.enter_context(run.lock())
        return run.resume(identity)
    except RunError as error:
        return error


def restore(
    saved: Checkpoint,
    model: Network,
    optimizer: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    run: RunFolder | None,
) -> EpochLog:
    """Take over a checkpoint; on the rank that writes, see that the best weights and the log in `run` are its own.

    Raises:
        RunError: it does not fit; nothing was changed.
    """
    own = optimizer.state_dict()
    try:
        load_strictly(model, saved.model, "the checkpoint")
        for index, state in own["state"].items():
            if saved.optimizer["state"][index]["momentum_buffer"].shape != state["momentum_buffer"].shape:
                raise ModelError(f"the momentum of parameter {index} has another shape")
        optimizer.load_state_dict(saved.optimizer)
        if saved.scaler:  # empty after bf16 or fp32, where nothing is scaled
            scaler.load_state_dict(saved.scaler)
    except (ModelError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        where = f" in {run.path}" if run else ""
        raise RunError(
            f"the newest checkpoint{where} does not fit this run ({error}): use another run folder"
        ) from error
    for group in optimizer.param_groups:
        group["fused"] = optimizer.defaults["fused"]  # the saving device's may not be this one's
    log = saved.epoch_log
    if run:
        run.restore_log(log)
        _restore_best(run, model, saved, log.best.epoch)
    return log


def _restore_best(run: RunFolder, model: Network, saved: Checkpoint, epoch: int) -> None:
    """See that `best/` holds the best epoch of the log.

    It may be damaged. Or the newest checkpoint was the best so far and is damaged, and an older one is resumed.
    """
    with contextlib.suppress(RunError):
        if run.best_weights()[0] == epoch and len(run.manifest().best()) == 2:
            return
    checkpoint = saved if saved.epoch == epoch else run.checkpoint(epoch)
    if checkpoint:
        model.load_state_dict(checkpoint.model)
        run.restore_best(epoch, partial(save_model, model))
        model.load_state_dict(saved.model)
    elif not run.restore_best_config(epoch, model.config):
        run.say(
            f"{run.best} does not hold epoch {epoch}, and no checkpoint of it is left: a better epoch replaces it"
        )
