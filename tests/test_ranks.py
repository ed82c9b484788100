"""Several ranks train as one: MixUp pairs the same images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import s8lib as s8
from s8lib.data.batches import plan_epoch
from s8lib.machine.ranks import ALONE, Ranks
from s8lib.trainer import loss_function
from tests.runs import recipe


@pytest.mark.parametrize("world", [2, 5])
def test_an_image_is_mixed_with_the_same_one_for_any_number_of_ranks(tiny: s8.Cifar100, world: int) -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.flatten(1)[:, :100]

    plan = plan_epoch(recipe(), 0, len(tiny.train), torch.device("cpu"))
    loss_of = loss_function(Network(), tiny.train, torch.device("cpu"), "fp32")
    for step in range(plan.steps):
        seen: list[Tensor] = []
        loss, hits = loss_of(plan.batch(step, ALONE))
        shares = [loss_of(plan.batch(step, Ranks(rank, world))) for rank in range(world)]
        assert torch.equal(torch.cat(seen[1:]), seen[0])
        torch.testing.assert_close(torch.stack([share[0] for share in shares]).mean(), loss)
        torch.testing.assert_close(torch.stack([share[1] for share in shares]).sum(), hits)
