"""One training step up to its loss: gather, augment, normalise, mix, forward; all on the training device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from s8lib.data import augment
from s8lib.data.batches import EpochPlan, plan_epoch, share_of
from s8lib.data.cifar100 import Split
from s8lib.machine.device import autocast
from s8lib.machine.ranks import Ranks
from s8lib.recipe import Recipe


class Step:
    """Computes losses of `network` on batches of `train_set`, which lives on `device` as uint8."""

    def __init__(self, network: nn.Module, train_set: Split, device: torch.device, precision: str) -> None:
        self.network = network
        self.train_set = train_set
        self.device = device
        self.precision = precision

    def loss(
        self,
        order: Tensor,
        draws: augment.Draws,
        lam: Tensor | None,
        policy: augment.Policy,
        image_size: int,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        """Mean loss (0-d, nats) and count of hits, both weighted by MixUp's lambda, of the images `order` [B].

        `draws` of `policy` are their augmentation; `lam` (0-d) mixes them, None leaves them unmixed.
        """
        labels = self.train_set.labels[order]
        images = augment.apply(self.train_set.images[order], draws, policy)
        images = augment.normalize(augment.resize(images, image_size))
        if lam is not None:
            images = augment.mixup(images, lam)
        with autocast(self.device, self.precision):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        weight = torch.ones((), device=self.device) if lam is None else lam
        loss = augment.mixup_cross_entropy(logits, labels, weight, label_smoothing)
        predicted = logits.detach().argmax(1)
        own, partner = (predicted == labels).sum(), (predicted == labels.roll(1)).sum()
        return loss, weight * own + (1 - weight) * partner

    def try_out(self, forward: Forward, recipe: Recipe, epoch: int, ranks: Ranks) -> None:
        """Run one forward and backward pass of `forward`, which compiles both, and leave nothing changed."""
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        plan = plan_epoch(recipe, epoch, recipe.batch_size, self.device)
        self.network.train()
        try:
            loss, _ = forward(*loss_arguments(recipe, plan, epoch, 0, ranks))
            loss.backward()
        finally:
            self.network.zero_grad()
            with torch.no_grad():
                for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                    buffer.copy_(before)


LossArguments: TypeAlias = tuple[Tensor, augment.Draws, Tensor | None, augment.Policy, int, float]
Forward: TypeAlias = Callable[..., tuple[Tensor, Tensor]]


def loss_arguments(recipe: Recipe, plan: EpochPlan, epoch: int, step: int, ranks: Ranks) -> LossArguments:
    """What `Step.loss` takes for this rank's share of a step."""
    knobs = recipe.at(epoch)
    rows = share_of(recipe, step, ranks)
    return (
        plan.order[rows],
        plan.draws[rows],
        plan.lam[step] if knobs.mixup_alpha else None,
        augment.POLICIES[knobs.augmentation],
        knobs.image_size,
        knobs.label_smoothing,
    )
