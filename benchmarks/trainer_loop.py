"""The trainer's own training loop, some steps at a time, in either memory layout, with or without the compiler."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import s8lib as s8
from s8lib.data.batches import plan_epoch
from s8lib.machine.device import compile_or_eager
from s8lib.machine.ranks import ALONE
from s8lib.optimizer import make_optimizer
from s8lib.session import Writer, try_out
from s8lib.trainer import loss_function, train_epoch  # the loop itself: a copy would prove nothing


class TrainerLoop:
    """Trains the recipe's network on `steps` batches of `train_set`, which is on `device`, in every call."""

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
        self.recipe, self.images, self.model = recipe, steps * recipe.batch_size, model
        self.optimizer = make_optimizer(recipe, model, device, precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        network = model if channels_last else _NCHW(model)
        self.device, self.loss_of = device, loss_function(network, train_set, device, precision)
        network.train()
        if compiled:
            self.loss_of = torch.compile(self.loss_of, dynamic=False)  # as the trainer's `compile_or_eager`
        try_out(network, model, [plan_epoch(recipe, 0, recipe.batch_size, device)], ALONE, self.loss_of)

    def images_per_s(self) -> float:
        plan = plan_epoch(self.recipe, 0, self.images, self.device)
        return train_epoch(plan, self.loss_of, self.optimizer, self.scaler, ALONE, Writer())["images_per_s"]

    def compile(self, phases: int) -> None:
        """As the trainer does before its first step, for its first phase alone or for both."""
        epochs = (0, self.recipe.epochs - 1)[:phases]
        ends = [plan_epoch(self.recipe, epoch, self.images, self.device) for epoch in epochs]
        lines = list[str]()
        compile_or_eager(self.loss_of, partial(try_out, self.model, self.model, ends, ALONE), ALONE, lines.append)
        if len(lines) > 1:
            raise RuntimeError(lines[-1])


class _NCHW(nn.Module):
    """Undoes the channels-last layout in which the trainer hands over its images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous())
