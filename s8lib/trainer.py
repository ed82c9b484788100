"""The training loop: epochs, steps, forward, backward, evaluate, log, save, in that order."""

import contextlib
import dataclasses
import inspect
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, amp, nn, optim
from torch.nn.parallel import DistributedDataParallel

from s8lib import session
from s8lib.data import augment
from s8lib.data.batches import Batch, EpochPlan, plan_epoch, seed_dropout
from s8lib.data.cifar100 import Cifar100, Split
from s8lib.data.cifar100 import holdout as holdout_split
from s8lib.forecast import forecast, in_words, seconds_left, until
from s8lib.launch import ranks_to_start, train_on
from s8lib.machine.arithmetic import arithmetic, taken_up, tell_what_differs
from s8lib.machine.device import (
    autocast,
    compile_or_eager,
    deterministic_compiler,
    environment,
    pick_compile,
    pick_device,
    pick_precision,
)
from s8lib.machine.progress import progress_bar, tell
from s8lib.machine.ranks import Ranks, join_ranks
from s8lib.metrics import evaluate
from s8lib.models.layers import algorithms_of
from s8lib.models.networks import Network, ResNet11
from s8lib.models.weights import ModelError, save_model
from s8lib.optimizer import make_optimizer, newton_schulz
from s8lib.recipe import Recipe, RecipeError
from s8lib.run.checkpoint import Checkpoint, Epoch, EpochLog, selector, snapshot
from s8lib.run.copies import Copies
from s8lib.run.folder import RunFolder
from s8lib.run.save import RunError, identity_of
from s8lib.session import LossOf, Writer

CHECK_EVERY = 50  # steps between looks at the loss; each look makes the host wait for the device
STARTS_FROM = 5000  # training images that a network may take first weights from


def train(
    recipe: Recipe,
    model: Network,
    data: Cifar100,
    run: RunFolder | str | Path | None = None,
    hub: Copies | None = None,
    device: str | torch.device | None = None,
    *,
    precision: str = "auto",
    compile: str = "auto",
    deterministic: bool = False,
    holdout: int = 0,
    sync_batchnorm: bool = False,
    watch: Callable[[EpochLog], None] | None = None,
    say: Callable[[str], None] = tell,
) -> EpochLog:
    """Train `model` in place by `recipe`, or go on where the run folder's newest good checkpoint stands.

    A resumed run equals the uninterrupted one bit for bit where the arithmetic is the same: kind of device,
    precision, threads, the CPU's instructions, torch, the compiler and the ranks; on a GPU with `deterministic`.
    The save's threads and precision are taken up where this machine has them; what else differs is said in a line.
    Under `torchrun` every rank calls this; the recipe's batch is shared among them and rank 0 writes.

    Args:
        run: where checkpoints, best weights and the epoch log go; without it nothing is saved.
        hub: publishes the saves of `run`, and is asked for what it has of this run.
        device: by default CUDA, MPS or the CPU, whichever comes first.
        precision: auto, bf16, fp16 or fp32; see `pick_precision`.
        compile: auto, on or off; see `pick_compile`. If the compiler fails, training goes on without it.
        holdout: this many training images, stratified, choose the best epoch; with 0 the test set does.
        sync_batchnorm: normalise over all ranks' images instead of each rank's own; GPUs only.
        watch: is shown the log after each epoch, to draw it, say, once that is saved: `run` has its weights then,
            and in `model` the next epoch may have begun.
        say: takes one line for people at a time.
    Returns:
        The epoch log; `log[-1]` is the final epoch, `log.best` the selected one.
    Raises:
        RecipeError, ModelError, DataError, RunError: bad input; nothing was changed.
        RunFault: the run has stopped, and can go on from its last checkpoint. NonFiniteLoss is one.
    """
    given = dict(locals())
    if ranks_wanted := ranks_to_start(recipe, device, say):
        return train_on(ranks_wanted, train, given)
    device = pick_device(device)
    # ResNet-11 is trained before it would be compiled; and where SyncBatchNorm meets in each step, a compiler that
    # fails on one rank would leave the others waiting.
    eager_is_better = compile == "auto" and (sync_batchnorm or isinstance(model, ResNet11))
    use_compile = pick_compile(device, "off" if eager_is_better else compile)
    pick_precision(device, precision)
    if not isinstance(model, Network):
        raise ModelError(f"train takes one of the library's networks itself, not a {type(model).__name__}")
    recipe = dataclasses.replace(recipe, model=model.name)
    if hub and run is None:
        raise RunError("the Hub is sent what a run folder holds: name one as run=")
    run = RunFolder(run, say=say) if isinstance(run, str | Path) else run
    train_set, selection_set = data.train, None
    if holdout:
        train_set, selection_set = holdout_split(data.train, holdout, recipe.seed)

    with contextlib.ExitStack() as stack:
        ranks, folder = stack.enter_context(join_ranks(device)), run
        if not ranks.first:
            run, say = None, lambda line: None  # rank 0 writes and speaks
        elif run and hub and hub not in run.copies:
            run.copies.append(hub)
        session.check_fit(recipe, model, data, len(train_set), ranks, sync_batchnorm, device)
        stack.enter_context(session.usual_settings(device, deterministic))

        shape = {"name": model.name, "num_classes": model.config["num_classes"]}
        identity = identity_of(recipe, shape, data.fingerprint(), holdout)
        if ranks.any(ranks.share(identity) != identity):
            raise RecipeError("the ranks were given different recipes or data: give every node those of the first")
        saved = ranks.share(session.lock_and_load(run, identity, data, stack))
        if isinstance(saved, RunError):
            raise saved
        precision = stack.enter_context(taken_up(device, precision, saved.arithmetic if saved else {}))
        precision, use_compile = ranks.share((precision, use_compile))  # their GPUs may be unlike
        stack.enter_context(session.telling_how_to_go_on(folder, say))
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(recipe, model, device, precision)
        scaler = amp.GradScaler(device.type, enabled=precision == "fp16")
        log = EpochLog()
        stack.enter_context(session.restoring_the_start(model, log, run))
        if saved:
            log.extend(session.restore(saved, model, optimizer, scaler, run))
        if len(log) == recipe.epochs or recipe.out_of_patience([row.selection_acc for row in log]):
            say(f"this run is finished: {log.summary()}")
            return log
        if not log:
            model.start_from(augment.normalize(train_set.images[:STARTS_FROM].to(device).float() / 255))

        network: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model) if sync_batchnorm else model
        if ranks.world > 1:
            # No rank sends its buffers in each step: evaluation is preceded by rank 0's. And no static_graph: it
            # fails torch's own assertion after a backward pass in which ranks do not meet, such as `try_out`'s.
            named = {"forward_sync_buffers"} & inspect.signature(DistributedDataParallel).parameters.keys()
            silent: Any = dict.fromkeys(named or {"broadcast_buffers"}, False)  # the name before torch 2.13
            network = DistributedDataParallel(network, gradient_as_bucket_view=True, **silent)
        loss_of = eager = loss_function(network, train_set.to(device), device, precision)
        # Each phase has its own code, and in the middle of a run it would be too late for the compiler to fail.
        ends = [plan_epoch(recipe, at, recipe.batch_size, device) for at in (len(log), recipe.epochs - 1)]
        if use_compile:
            stack.enter_context(deterministic_compiler() if deterministic else contextlib.nullcontext())
            try_out = partial(session.try_out, network, model, ends, ranks, meet=False)  # one may not come so far
            loss_of = compile_or_eager(eager, try_out, ranks, say)

        compiled, share = loss_of is not eager, recipe.batch_size // ranks.world
        own = {"sync_batchnorm": sync_batchnorm, **algorithms_of(model, device, precision, compiled, share)}
        if recipe.optimizer == "muon":
            own["Newton-Schulz"] = newton_schulz(precision)
        used = arithmetic(device, precision, compiled, ranks.world, deterministic, own)
        if saved:
            tell_what_differs(saved.arithmetic, used, say)
        if run:
            settings = {"precision": precision, "compile": compiled, "deterministic": deterministic}
            settings |= {"ranks": ranks.world, "data": data.name, "test_images": len(data.test)}
            run.begin_session(recipe, settings | environment(device))
        say(f"{recipe.name}, {model.name}, {len(train_set):,} training images: {data.source}")
        say(f"on {device.type} in {precision}; best is chosen on {selector(bool(holdout))}")
        test_set, selection_set = data.test.to(device), selection_set and selection_set.to(device)

        step = session.try_out(network, model, [ends[0]] * 2, ranks, loss_of)  # of two: the first is slower
        say(forecast(recipe, len(log), step, len(train_set), len(data.test)))

        show = partial(session.show, watch, log, model, device) if watch and ranks.first else lambda: None
        writer = stack.enter_context(Writer(run, show))

        for epoch in range(len(log), recipe.epochs):
            started = time.perf_counter()
            knobs = recipe.at(epoch)
            plan = plan_epoch(recipe, epoch, len(train_set), device)
            model.set_dropout(knobs.dropout)
            seed_dropout(recipe, epoch, ranks)
            model.train()
            trained = train_epoch(plan, loss_of, optimizer, scaler, ranks, writer)
            ranks.share_buffers(model)
            test = evaluate(model, test_set, device, precision=precision, ranks=ranks)
            if not math.isfinite(test.loss):
                raise session.NonFiniteLoss(
                    f"epoch {epoch + 1} made the test loss infinite or NaN; {writer.how_to_go_on(ranks)}"
                )
            held = selection_set and evaluate(model, selection_set, device, precision=precision, ranks=ranks)
            selection_acc = held.top1 if held else test.top1
            writer.finish()
            log.append(Epoch(
                **trained, epoch=epoch + 1, phase=recipe.phase(epoch),
                dropout=knobs.dropout, mixup_alpha=knobs.mixup_alpha, augmentation=knobs.augmentation,
                test_loss=test.loss, test_acc=test.top1, test_top5=test.top5,
                best_acc=max([selection_acc, *(row.selection_acc for row in log)]),
                holdout_acc=held.top1 if held else None, seconds=time.perf_counter() - started,
            ))  # fmt: skip
            if run:
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                states = snapshot(states | {"scaler": scaler.state_dict()})
                save_best = partial(save_model, model, weights=states["model"]) if log.best is log[-1] else None
                writer.begin(Checkpoint(identity, **states, log=log, arithmetic=used), save_best)
            left = seconds_left(recipe, epoch + 1, epoch, log[-1].seconds)
            say(log.line(recipe.epochs) + (f"  {in_words(left)} left, {until(left)}" if left else ""))
            if not run:
                show()
            if ranks.any(recipe.out_of_patience([row.selection_acc for row in log])):
                say(f"stopped early: no better epochs within {recipe.patience} in this cycle")
                break
        writer.finish()
        say(f"finished: {log.summary()}")
        return log


def train_epoch(
    plan: EpochPlan, loss_of: LossOf, optimizer: optim.SGD, scaler: amp.GradScaler, ranks: Ranks, writer: Writer
) -> dict[str, float]:
    """The steps of one epoch, and the columns of its row that they come to.

    None makes the host wait for the device, but for a look at the loss now and then, and Muon's in fp16, before
    which the scaler looks for infinities.
    """
    started, device = time.perf_counter(), plan.order.device
    elsewhere = 0.0  # seconds with what follows a save
    losses, hits = torch.zeros(plan.steps, device=device), torch.zeros((), device=device)
    bar = progress_bar(range(plan.steps), f"epoch {plan.epoch + 1}/{plan.recipe.epochs}", shown=ranks.first)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = plan.lr(step) * group.get("lr_factor", 1)
        loss, hit = loss_of(plan.batch(step, ranks))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses[step] = loss.detach()
        hits += hit
        asked = time.perf_counter()
        writer.look()
        elsewhere += time.perf_counter() - asked
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == plan.steps:
            session.check_health(losses[: step + 1], scaler.get_scale(), plan.epoch, ranks, writer)
            bar.set_postfix(loss=f"{float(losses[step]):.3f}", refresh=False)
    return {
        "lr": plan.lr(step),
        "train_loss": float(ranks.sum(losses.sum())) / (plan.steps * ranks.world),
        "train_acc": 100 * float(ranks.sum(hits)) / len(plan.order),
        "images_per_s": len(plan.order) / (time.perf_counter() - started - elsewhere),
    }


def loss_function(network: nn.Module, train_set: Split, device: torch.device, precision: str) -> LossOf:
    """What is computed of a batch, in one function that the compiler takes as a whole.

    The learning rate is no part of it, so it is compiled once. `train_set` lives on `device` as uint8.
    """

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss (0-d, nats) and count of hits, both weighted by MixUp's lambda."""
        labels = train_set.labels[batch.order]
        images = augment.apply(train_set.images[batch.order], batch.draws, batch.policy)
        images = augment.normalize(augment.resize(images, batch.image_size))
        if batch.lam is not None:
            images = augment.mixup(images, batch.lam)
        images, labels, partners = images[batch.before :], labels[batch.before :], labels.roll(1)[batch.before :]
        with autocast(device, precision):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        weight = torch.ones((), device=device) if batch.lam is None else batch.lam
        loss = augment.mixup_cross_entropy(logits, labels, partners, weight, batch.label_smoothing)
        predicted = logits.detach().argmax(1)
        own, partner = (predicted == labels).sum(), (predicted == partners).sum()
        return loss, weight * own + (1 - weight) * partner

    return loss_of
