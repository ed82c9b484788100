"""The training loop: epochs, steps, forward, backward, evaluate, log, save, in that order."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from s8lib.data.batches import plan_epoch, seed_dropout
from s8lib.data.cifar100 import Cifar100
from s8lib.data.cifar100 import holdout as holdout_split
from s8lib.machine.device import (
    compile_or_eager,
    deterministic_algorithms,
    environment,
    pick_compile,
    pick_device,
    pick_precision,
)
from s8lib.machine.progress import progress_bar
from s8lib.machine.ranks import Ranks, join_ranks
from s8lib.metrics import evaluate
from s8lib.models.networks import Network
from s8lib.recipe import Recipe
from s8lib.run.folder import RunError, RunFolder, how_to_go_on
from s8lib.run.log import Epoch, EpochLog, selector
from s8lib.run.start import Publisher, check_fit, claim, open_session, telling_how_to_go_on
from s8lib.run.state import TrainState, fresh_state, identity_of
from s8lib.step import Forward, Step, loss_arguments

CHECK_EVERY = 50  # steps between looks at the loss; each look makes the host wait for the device


class NonFiniteLoss(RuntimeError):
    """Training diverged; the message names the epoch, the step and the last good checkpoint."""


def train(
    recipe: Recipe,
    model: Network,
    data: Cifar100,
    run: RunFolder | str | Path | None = None,
    hub: Publisher | None = None,
    device: str | torch.device | None = None,
    *,
    precision: str = "auto",
    compile: str = "auto",
    deterministic: bool = False,
    holdout: int = 0,
    sync_batchnorm: bool = False,
    watch: Callable[[EpochLog], None] | None = None,
    say: Callable[[str], None] = print,
) -> EpochLog:
    """Train `model` in place by `recipe`, or go on where the run folder's newest good checkpoint stands.

    On a CPU, and on a GPU with `deterministic`, a resumed run equals the uninterrupted one bit for bit.
    Under `torchrun` every rank calls this; the recipe's batch is shared among them and rank 0 writes.

    Args:
        run: where checkpoints, best weights and the epoch log go; without it nothing is saved.
        hub: is told after each epoch, and asked for what it has of this run if `run` holds no epoch.
        device: by default CUDA, MPS or the CPU, whichever comes first.
        precision: auto, bf16, fp16 or fp32; see `pick_precision`.
        compile: auto, on or off; see `pick_compile`. If the compiler fails, training goes on without it.
        holdout: this many training images, stratified, choose the best epoch; with 0 the test set does.
        sync_batchnorm: normalise over all ranks' images instead of each rank's own; GPUs only.
        watch: is shown the log after each epoch, to draw it, say.
        say: takes one line for people at a time.
    Returns:
        The epoch log; `log[-1]` is the final epoch, `log.best` the selected one.
    Raises:
        RecipeError, ModelError, DataError, RunError: bad input; nothing was changed.
        NonFiniteLoss: the run can go on from its last checkpoint.
    """
    device = pick_device(device)
    precision = pick_precision(device, precision)
    use_compile = pick_compile(device, compile)
    recipe = dataclasses.replace(recipe, model=model.name)
    run = RunFolder(run, say=say) if isinstance(run, str | Path) else run
    train_set, selection_set = data.train, None
    if holdout:
        train_set, selection_set = holdout_split(data.train, holdout, recipe.seed)

    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join_ranks(device))
        if not ranks.first:
            run, say = None, _silent
        check_fit(recipe, model, data, len(train_set), ranks, sync_batchnorm, device)
        stack.enter_context(deterministic_algorithms(deterministic))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(telling_how_to_go_on(run, say))

        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        state = fresh_state(recipe, model, device, precision, identity_of(recipe, model, data, holdout))
        saved = ranks.share(claim(run, hub, state.identity, stack))
        if isinstance(saved, RunError):
            raise saved
        if saved:
            state.restore(saved, run)
        log = state.log
        if len(log) == recipe.epochs or recipe.out_of_patience([row.selection_acc for row in log]):
            say(f"this run is finished: {log.summary()}")
            if run and hub:
                hub.finish(run, log)
            return log

        network: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model) if sync_batchnorm else model
        if ranks.world > 1:
            network = DistributedDataParallel(network, gradient_as_bucket_view=True)
        step = Step(network, train_set.to(device), device, precision)
        forward = step.loss
        if use_compile:
            model.set_dropout(recipe.at(len(log)).dropout)
            forward = compile_or_eager(forward, lambda f: step.try_out(f, recipe, len(log), ranks), say)

        if run:
            settings = {
                "precision": precision,
                "compile": forward != step.loss,
                "deterministic": deterministic,
                "ranks": ranks.world,
                "data": data.source.partition(" in ")[0],  # without its folder: this file gets published
                "test_images": len(data.test),
            }
            open_session(run, recipe, log, settings | environment(device))
        say(f"{recipe.name}, {model.name}, {len(train_set):,} training images: {data.source}")
        say(f"on {device.type} in {precision}; best is chosen on {selector(bool(holdout))}")
        test_set, selection_set = data.test.to(device), selection_set and selection_set.to(device)

        for epoch in range(len(log), recipe.epochs):
            started = time.perf_counter()
            knobs = recipe.at(epoch)
            model.set_dropout(knobs.dropout)
            seed_dropout(recipe, epoch, ranks)
            trained = _train_epoch(epoch, recipe, forward, state, len(train_set), ranks, run)
            ranks.share_buffers(model)
            test = evaluate(model, test_set, device, precision=precision, ranks=ranks)
            if not math.isfinite(test.loss):
                raise NonFiniteLoss(
                    f"the last steps of epoch {epoch + 1} made the test loss infinite or NaN; {how_to_go_on(run)}"
                )
            held = selection_set and evaluate(model, selection_set, device, precision=precision, ranks=ranks)
            selection_acc = held.top1 if held else test.top1
            log.append(
                Epoch(
                    epoch=epoch + 1,
                    phase=recipe.phase(epoch),
                    lr=trained.lr,
                    dropout=knobs.dropout,
                    mixup_alpha=knobs.mixup_alpha,
                    augmentation=knobs.augmentation,
                    train_loss=trained.loss,
                    train_acc=trained.accuracy,
                    test_loss=test.loss,
                    test_acc=test.top1,
                    test_top5=test.top5,
                    best_acc=max([selection_acc, *(row.selection_acc for row in log)]),
                    images_per_s=trained.images_per_s,
                    seconds=time.perf_counter() - started,
                    holdout_acc=held.top1 if held else None,
                )
            )
            if run:
                state.save(run)
            say(log.line(recipe.epochs))
            if run and hub:
                hub.after_epoch(run, log)
            if watch and ranks.first:
                watch(log)
            if recipe.out_of_patience([row.selection_acc for row in log]):
                say(f"stopped early: {recipe.patience} epochs without a better one in this cycle")
                break
        say(f"finished: {log.summary()}")
        if run and hub:
            hub.finish(run, log)
        return log


@dataclass(frozen=True)
class TrainedEpoch:
    """What an epoch's training came to; loss (nats) and accuracy (percent) are weighted by MixUp's lambda."""

    lr: float
    loss: float
    accuracy: float
    images_per_s: float


def _train_epoch(
    epoch: int,
    recipe: Recipe,
    forward: Forward,
    state: TrainState,
    images: int,
    ranks: Ranks,
    run: RunFolder | None,
) -> TrainedEpoch:
    started = time.perf_counter()
    state.model.train()
    device = next(state.model.parameters()).device
    plan = plan_epoch(recipe, epoch, images, device)
    losses, hits = torch.zeros(plan.steps, device=device), torch.zeros((), device=device)
    bar = progress_bar(range(plan.steps), f"epoch {epoch + 1}/{recipe.epochs}", shown=ranks.first)
    # Nothing between here and the look at the loss makes the host wait for the device.
    for step in bar:
        lr = recipe.at(epoch + step / plan.steps).lr
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        loss, hit = forward(*loss_arguments(recipe, plan, epoch, step, ranks))
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        losses[step] = loss.detach()
        hits += hit
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == plan.steps:
            finite = ranks.sum((~losses[: step + 1].isfinite()).float()) == 0
            if not finite.all():
                first = int(finite.int().argmin())
                raise NonFiniteLoss(
                    f"the loss is infinite or NaN in epoch {epoch + 1}, step {first + 1}; {how_to_go_on(run)}. "
                    "A lower lr_peak or a longer warm-up, in a new run folder, usually helps"
                )
            bar.set_postfix(loss=f"{float(losses[step]):.3f}", refresh=False)
    return TrainedEpoch(
        lr=lr,
        loss=float(ranks.sum(losses.sum())) / (plan.steps * ranks.world),
        accuracy=100 * float(ranks.sum(hits)) / len(plan.order),
        images_per_s=len(plan.order) / (time.perf_counter() - started),
    )


def _silent(line: str) -> None:
    """What ranks other than the first say."""
