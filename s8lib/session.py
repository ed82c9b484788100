"""Around the loop: what must fit before it, what it goes on from, its saves, what is left when it is stopped."""

import concurrent.futures
import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from s8lib.data.batches import Batch, EpochPlan
from s8lib.data.cifar100 import Cifar100
from s8lib.machine.device import keep_memory
from s8lib.machine.ranks import Ranks
from s8lib.models.networks import Network
from s8lib.models.weights import ModelError, load_strictly, save_config, save_model
from s8lib.recipe import Recipe, RecipeError
from s8lib.run.checkpoint import Checkpoint, EpochLog
from s8lib.run.folder import RunFolder, Write, how_to_go_on
from s8lib.run.save import CONFIG, LOG, WEIGHTS, RunError, RunFault, holds

LossOf = Callable[[Batch], tuple[Tensor, Tensor]]


def check_fit(
    recipe: Recipe, model: Network, data: Cifar100, images: int, ranks: Ranks, sync: bool, device: torch.device
) -> None:
    """Refuse what cannot be trained, before anything is written."""
    model.name_classes(data.classes)
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ModelError(f"{model.name} is not in float32: build it under torch.set_default_dtype(torch.float32)")
    if recipe.batch_size > images:
        smaller = "take less, such as --set batch_size=32 or, in a notebook, BATCH_SIZE = 32"
        raise RecipeError(f"batch_size = {recipe.batch_size}: there are only {images} training images: {smaller}")
    if recipe.batch_size % ranks.world:
        raise RecipeError(f"batch_size = {recipe.batch_size}: cannot be shared evenly among {ranks.world} ranks")
    if model.name == "resnet-11" and min(recipe.image_size) < 12:
        raise RecipeError(f"image_size = {recipe.image_size}: nothing is left of images below 12x12 in resnet-11")
    if sync and device.type != "cuda":
        raise ModelError("sync_batchnorm needs GPUs: torch's SyncBatchNorm does not run on a CPU")


def lock_and_load(
    run: RunFolder | None, identity: dict[str, Any], data: Cifar100, stack: contextlib.ExitStack
) -> Checkpoint | RunError | None:
    """Lock the run folder for this process; its newest checkpoint, or why it cannot be used, for every rank."""
    try:
        if run:
            stack.enter_context(run.lock())
            run.refuse_other_data(data)  # by its name: what differs in the identity is a hash
        return run.resume(identity) if run else None
    except RunError as error:
        return error


def restore(
    saved: Checkpoint, model: Network, optimizer: optim.SGD, scaler: torch.amp.GradScaler, run: RunFolder | None
) -> EpochLog:
    """Take over a checkpoint; on the rank that writes, see that the best weights and the log in `run` are its own.

    Raises:
        RunError: it does not fit; nothing was changed.
    """
    own = optimizer.state_dict()
    try:
        for index, state in own["state"].items():
            if saved.optimizer["state"][index]["momentum_buffer"].shape != state["momentum_buffer"].shape:
                raise ModelError(f"the momentum of parameter {index} has another shape")
        optimizer.load_state_dict(saved.optimizer)
        if saved.scaler:  # empty after bf16 or fp32, where nothing is scaled
            scaler.load_state_dict(saved.scaler)
        load_strictly(model, saved.model, "the checkpoint", assign=False)
    except torch.OutOfMemoryError:  # says nothing against the checkpoint
        raise
    except (ModelError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        where = f" in {run.path}" if run else ""
        raise RunError(f"the newest checkpoint{where} does not fit ({error}): use another run folder") from error
    for group in optimizer.param_groups:
        group["fused"] = optimizer.defaults["fused"]  # the saving device's may not be this one's
    if run:
        _heal(run, model, saved)
    return saved.log


def _heal(run: RunFolder, model: Network, saved: Checkpoint) -> None:
    """See that the log and the best weights in `run` are those that `saved` knows of.

    They may be damaged. Or the newest checkpoint is damaged, was the best so far, and an older one is resumed.
    """
    manifest, epoch, text = run.manifest(), saved.log.best.epoch, saved.log.to_csv()
    path = run.path / LOG
    if LOG not in manifest.files or not path.is_file() or path.read_bytes() != text.encode():
        run.renew(lambda new: (new / LOG).write_text(text, encoding="utf-8"))
    with contextlib.suppress(RunError):
        if run.best_weights()[0] == epoch and CONFIG in manifest.files:
            return
    weights_hold = WEIGHTS in manifest.files and holds(run.find(WEIGHTS), manifest.files[WEIGHTS])
    checkpoint = saved if saved.epoch == epoch else run.checkpoint(epoch)
    if checkpoint:
        run.renew(lambda new: save_model(model, new / "best", checkpoint.model), best_epoch=epoch)
    elif manifest.best_epoch == epoch and weights_hold:
        run.renew(lambda new: save_config(model, new / "best"))
    else:
        run.say(
            f"{run.best} does not hold epoch {epoch}, and no checkpoint of it is left: a better one replaces it"
        )
        run.renew(lambda new: None, best_epoch=None)


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes the saves of `run` while training goes on, one at a time; a kill costs that one, leaving awaits it.

    Args:
        run: where to; None saves nothing.
        then: called by the one who trains when a save is on the disk.
    """

    def __init__(self, run: RunFolder | None = None, then: Callable[[], object] = lambda: None) -> None:
        self.run, self.then = run, then
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "save")
        self._save: concurrent.futures.Future[None] | None = None

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        if self.run and self._save and (problem := self._save.exception()):  # another one is on its way up
            self.run.say(str(problem))

    def begin(self, checkpoint: Checkpoint, save_best: Write | None) -> None:
        """Begin to write what training will not change; see `RunFolder.save`."""
        self.finish()
        if self.run:
            self._save = self._thread.submit(self.run.save, checkpoint, save_best)

    def look(self) -> None:
        """If the save under way is on the disk, let the copies and `then` have it."""
        if self._save and self._save.done() and not self._save.exception():
            self.finish()

    def finish(self) -> None:
        """Wait for the save under way, and do as `look`.

        Raises:
            RunFault: it could not be made, or another process has taken the run over.
        """
        if self.run and self._save:
            concurrent.futures.wait([self._save])  # Ctrl-C in here leaves the save to __exit__
            save, self._save = self._save, None
            save.result()
            self.run.copy()
            self.then()

    def how_to_go_on(self, ranks: Ranks) -> str:
        """What `folder.how_to_go_on` says once the save under way has ended, however it has; all ranks ask."""
        concurrent.futures.wait([self._save] if self._save else [])
        return str(ranks.share(how_to_go_on(self.run)))  # only rank 0 has the run, and a save to wait for


def show(watch: Callable[[EpochLog], object], log: EpochLog, model: nn.Module, device: torch.device) -> None:
    """Call `watch` with `log`, between two steps of an epoch perhaps, which is none the worse for it."""
    training = model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        watch(log)
    model.train(training)


class NonFiniteLoss(RunFault):
    """Training diverged; the message names the epoch, the step and the last good checkpoint."""


def check_health(losses: Tensor, scale: float, epoch: int, ranks: Ranks, writer: Writer) -> None:
    """Raise, on every rank, unless the losses so far [steps] are finite and fp16's scale holds."""
    finite = ranks.sum((~losses.isfinite()).float()) == 0
    if not finite.all():
        raise NonFiniteLoss(
            f"the loss is infinite or NaN in epoch {epoch + 1}, step {int(finite.int().argmin()) + 1}; "
            f"{writer.how_to_go_on(ranks)}. A lower lr_peak or a longer warm-up, in a new run folder, may help"
        )
    if scale < 1:  # it starts at 65,536, and every step that is skipped halves it
        raise RunFault(
            f"fp16 does not hold the gradients of epoch {epoch + 1} and skips steps; {writer.how_to_go_on(ranks)}"
            ". Go on in bf16 or fp32, or take a lower lr_peak in a new run folder"
        )


def try_out(
    network: nn.Module,
    model: Network,
    plans: Sequence[EpochPlan],
    ranks: Ranks,
    loss_of: LossOf,
    meet: bool = True,
) -> float:
    """Run the first step of each of `plans` forward and backward, which compiles it; the seconds of the last.

    Nothing stays changed but dropout's probability and, if ranks `meet` in the backward pass, the order in which
    their gradients are added, which torch settles at the first meeting: so it is a resumed run's too.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    alone = isinstance(network, DistributedDataParallel) and not meet
    parted = network.no_sync() if alone else contextlib.nullcontext()  # type: ignore[operator]
    network.train()
    try:
        with parted:
            for plan in plans:
                model.set_dropout(plan.recipe.at(plan.epoch).dropout)
                started = time.perf_counter()
                loss = loss_of(plan.batch(0, ranks))[0]
                loss.backward()
                loss.item()  # waits for the device
    finally:
        network.zero_grad()
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
    return time.perf_counter() - started


@contextlib.contextmanager
def usual_settings(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Gradients, float32 and a random state of its own, whatever the caller has switched off or set.

    With `deterministic` equal runs are equal to the last bit on a GPU too, at some cost in speed.
    """
    keep_memory(device)
    cudnn, forked = torch.backends.cudnn, [device] if device.type == "cuda" else []
    dtype, algorithms = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    of_cudnn = cudnn.deterministic, cudnn.benchmark
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(deterministic or algorithms)
    cudnn.deterministic, cudnn.benchmark = deterministic, not deterministic
    try:
        with torch.random.fork_rng(forked), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(algorithms)
        cudnn.deterministic, cudnn.benchmark = of_cudnn


@contextlib.contextmanager
def restoring_the_start(model: nn.Module, log: EpochLog, run: RunFolder | None) -> Iterator[None]:
    """Give `model` its first weights back unless an epoch was saved, or ended: the next run starts from them.

    A diverged run gives them back in any case.
    """
    start = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    except NonFiniteLoss:
        model.load_state_dict(start)
        raise
    finally:
        done = len(log)
        with contextlib.suppress(RunError):
            done = run.manifest().epoch if run else done
        if not done:
            model.load_state_dict(start)


@contextlib.contextmanager
def telling_how_to_go_on(run: RunFolder | None, say: Callable[[str], None]) -> Iterator[None]:
    """Say, when Ctrl-C, SIGTERM or a GPU that is too small ends the block, from where the same command goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)  # a notebook keeps it, and with it what the step had computed
        say(f"stopped; {how_to_go_on(run)}")
        raise
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        raise RunFault(
            f"the GPU's memory is too small ({str(error).partition('. ')[0]}); {how_to_go_on(run)}. "
            "A lower batch_size or a smaller network, in a new run folder, needs less"
        ) from error
