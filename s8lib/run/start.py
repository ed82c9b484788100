"""Around the loop: what must fit before a run starts, whose its folder is, and what is said when it is stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from s8lib.data.cifar100 import Cifar100
from s8lib.machine.ranks import Ranks
from s8lib.models.networks import Network
from s8lib.models.weights import ModelError
from s8lib.recipe import Recipe, RecipeError
from s8lib.run.folder import RunError, RunFolder, how_to_go_on
from s8lib.run.log import EpochLog


class Publisher(Protocol):
    """What `train` tells whoever publishes a run; no call may block for long, and only `fetch` may raise."""

    def fetch(self, run: RunFolder, identity: dict[str, Any]) -> bool:
        """Bring what was published of this very run into its empty folder, which is locked; whether there was any.

        Raises:
            RunError: what was published cannot be used; a run never starts over silently.
        """

    def after_epoch(self, run: RunFolder, log: EpochLog) -> None:
        """The epoch's checkpoint is complete in `run`."""

    def finish(self, run: RunFolder, log: EpochLog) -> None:
        """Training is over."""


def check_fit(
    recipe: Recipe,
    model: Network,
    data: Cifar100,
    images: int,
    ranks: Ranks,
    sync_batchnorm: bool,
    device: torch.device,
) -> None:
    """Refuse what cannot be trained, before anything is written.

    Raises:
        ModelError, RecipeError: naming what does not fit.
    """
    if model.config["num_classes"] != len(data.classes):
        raise ModelError(
            f"{model.name} has {model.config['num_classes']} classes and the data {len(data.classes)}"
        )
    if recipe.batch_size > images:
        raise RecipeError(f"batch_size = {recipe.batch_size}: there are only {images} training images")
    if recipe.batch_size % ranks.world:
        raise RecipeError(f"batch_size = {recipe.batch_size}: cannot be shared evenly among {ranks.world} ranks")
    if sync_batchnorm and device.type != "cuda":
        raise ModelError("sync_batchnorm needs GPUs: torch's SyncBatchNorm does not run on a CPU")


def open_session(run: RunFolder, recipe: Recipe, log: EpochLog, settings: dict[str, object]) -> None:
    """Write what a reader of the folder needs, once a start or resume."""
    run.write_json("recipe.json", recipe.to_dict())
    run.write_text("epoch_log.csv", log.to_csv())
    sessions = run.read_json("environment.json", default=[])
    run.write_json("environment.json", [*sessions, {"from_epoch": len(log) + 1, **settings}])


def claim(
    run: RunFolder | None, hub: Publisher | None, identity: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, Any] | RunError | None:
    """Lock the run folder for this process; its newest checkpoint, or else the published one, or why it cannot be
    used, for every rank."""
    try:
        if run is None:
            return None
        stack.enter_context(run.lock())
        saved = run.resume()
        if saved is None and hub and hub.fetch(run, identity):
            saved = run.resume()
        return saved
    except RunError as error:
        return error


@contextlib.contextmanager
def telling_how_to_go_on(run: RunFolder | None, say: Callable[[str], None]) -> Iterator[None]:
    """Say, when Ctrl-C or SIGTERM ends the block, from where the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; {how_to_go_on(run)}")
        raise
