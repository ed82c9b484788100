"""An epoch's plan and its batches: all the randomness of the data, as a function of (seed, epoch).

It is drawn on the CPU and for the global batch, so data, noise and MixUp are the same on any device, after a
resume, and for any number of ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s8lib.data.augment import Draws, draw, draw_mixup
from s8lib.machine.ranks import Ranks
from s8lib.recipe import POLICIES, Policy, Recipe


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step: which images, and all that is done to them.

    Attributes:
        order: [before + B] int64, the images.
        draws: their augmentation, of `policy`.
        lam: 0-d float32, MixUp's lambda; None leaves them unmixed.
        before: 1 if the first of them is another rank's, and here only as the partner of the next; else 0.
        image_size: pixels, the side they are shrunk to.
    """

    order: Tensor
    draws: Draws
    lam: Tensor | None
    policy: Policy
    image_size: int
    label_smoothing: float
    before: int


@dataclass(frozen=True)
class EpochPlan:
    """The epoch `epoch` (from 0) on the training device: `steps` global batches, the last partial one dropped.

    Attributes:
        order: [steps * batch_size] int64, which image comes when; a fresh permutation each epoch.
        draws: the augmentation of each of them.
        lam: [steps] float32, MixUp's lambda of each batch.
    """

    recipe: Recipe
    epoch: int
    steps: int
    order: Tensor
    draws: Draws
    lam: Tensor

    def lr(self, step: int) -> float:
        return self.recipe.at(self.epoch + step / self.steps).lr

    def batch(self, step: int, ranks: Ranks) -> Batch:
        """This rank's part of the global batch of `step`."""
        whole, knobs = self.recipe.batch_size, self.recipe.at(self.epoch)
        size, begin = whole // ranks.world, step * whole
        share, before = ranks.rank * size, int(ranks.world > 1 and knobs.mixup_alpha > 0)
        rows: slice | Tensor = slice(begin + share, begin + share + size)
        if before:  # the image before this share comes along, as in the whole batch
            rows = begin + torch.arange(share - 1, share + size, device=self.order.device) % whole
        return Batch(
            self.order[rows],
            self.draws[rows],
            self.lam[step] if knobs.mixup_alpha else None,
            POLICIES[knobs.augmentation],
            knobs.image_size,
            knobs.label_smoothing,
            before,
        )


def plan_epoch(recipe: Recipe, epoch: int, images: int, device: torch.device) -> EpochPlan:
    """The plan of `epoch` (from 0) over a training set of `images`."""
    knobs = recipe.at(epoch)
    policy = POLICIES[knobs.augmentation]
    steps = images // recipe.batch_size
    used = steps * recipe.batch_size
    generator = torch.Generator().manual_seed(derived_seed(recipe.seed, epoch))
    order = torch.randperm(images, generator=generator)[:used]
    flip = None
    if policy.alternating_flips:
        of_run = torch.Generator().manual_seed(derived_seed(recipe.seed))
        flip = (torch.rand(images, generator=of_run) < policy.flip_p)[order] ^ bool(epoch % 2)
    draws = draw(used, policy, generator, flip)
    lam = draw_mixup(steps, knobs.mixup_alpha, generator)
    return EpochPlan(recipe, epoch, steps, order.to(device), draws.to(device), lam.to(device))


def seed_dropout(recipe: Recipe, epoch: int, ranks: Ranks) -> None:
    """Start the global random state, which dropout draws from, anew for (seed, epoch, rank)."""
    torch.manual_seed(derived_seed(recipe.seed, epoch, 1 + ranks.rank))


def derived_seed(*parts: int) -> int:
    """A well-mixed 63-bit seed from small integers (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
