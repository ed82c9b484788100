"""The trainer's own training loop, some steps at a time, in either memory layout, with or without the compiler."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

import s8lib as s8
from s8lib.machine.ranks import ALONE
from s8lib.run.state import fresh_state
from s8lib.step import Step
from s8lib.trainer import _train_epoch  # the loop itself: measuring a copy of it would prove nothing


class TrainerLoop:
    """Trains the recipe's network on `steps` batches of `train_set`, which is on `device`, in every call.

    `compile_seconds` is what the compiler and the first step took together; None without it.
    """

    def __init__(
        self,
        recipe: s8.Recipe,
        train_set: s8.Split,
        steps: int,
        device: torch.device,
        precision: str,
        channels_last: bool,
        compiled: bool,
    ) -> None:
        model = s8.build_model(recipe.model, dropout=recipe.at(0).dropout, seed=recipe.seed)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.recipe, self.images = recipe, steps * recipe.batch_size
        self.state = fresh_state(recipe, model, device, precision, {})
        step = Step(model if channels_last else _NCHW(model), train_set, device, precision)
        self.forward = step.loss
        self.compile_seconds: float | None = None
        if compiled:
            self.forward = torch.compile(step.loss, dynamic=False)  # as the trainer's `compile_or_eager`
            started = time.perf_counter()
            step.try_out(self.forward, recipe, 0, ALONE)
            self.compile_seconds = time.perf_counter() - started

    def images_per_s(self) -> float:
        return _train_epoch(0, self.recipe, self.forward, self.state, self.images, ALONE, None).images_per_s


class _NCHW(nn.Module):
    """Undoes the channels-last layout in which `Step` hands over its images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous())
