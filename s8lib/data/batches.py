"""All the randomness of one epoch's data, as a function of (seed, epoch).

It is drawn on the CPU and for the global batch, so data, noise and MixUp are the same on any device, after a
resume, and for any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s8lib.data.augment import POLICIES, Draws, draw, draw_mixup
from s8lib.machine.ranks import Ranks
from s8lib.recipe import Recipe


@dataclass(frozen=True)
class EpochPlan:
    """One epoch on the training device: `steps` global batches, the last partial one dropped.

    Attributes:
        order: [steps * batch_size] int64, which image comes when; a fresh permutation each epoch.
        draws: the augmentation of each of them.
        lam: [steps] float32, MixUp's lambda of each batch.
    """

    steps: int
    order: Tensor
    draws: Draws
    lam: Tensor


def plan_epoch(recipe: Recipe, epoch: int, images: int, device: torch.device) -> EpochPlan:
    """The plan of `epoch` (from 0) over a training set of `images`."""
    knobs = recipe.at(epoch)
    steps = images // recipe.batch_size
    used = steps * recipe.batch_size
    generator = torch.Generator().manual_seed(derived_seed(recipe.seed, epoch))
    order = torch.randperm(images, generator=generator)[:used]
    draws = draw(used, POLICIES[knobs.augmentation], generator)
    lam = draw_mixup(steps, knobs.mixup_alpha, generator)
    return EpochPlan(steps, order.to(device), draws.to(device), lam.to(device))


def share_of(recipe: Recipe, step: int, ranks: Ranks) -> slice:
    """The rows of the plan that this rank trains on in `step`: its part of the global batch."""
    size = recipe.batch_size // ranks.world
    begin = step * recipe.batch_size + ranks.rank * size
    return slice(begin, begin + size)


def seed_dropout(recipe: Recipe, epoch: int, ranks: Ranks) -> None:
    """Start the global random state, which dropout draws from, anew for (seed, epoch, rank)."""
    torch.manual_seed(derived_seed(recipe.seed, epoch, 1 + ranks.rank))


def derived_seed(*parts: int) -> int:
    """A well-mixed 63-bit seed from small integers (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
