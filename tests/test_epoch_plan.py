"""An epoch's randomness is a function of (seed, epoch): nothing to save, the same for any number of ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import s8lib as s8
from s8lib.data.augment import Draws
from s8lib.data.batches import EpochPlan, derived_seed, plan_epoch, seed_dropout
from s8lib.machine.ranks import ALONE, Ranks

CPU = torch.device("cpu")
RECIPE = s8.SEED_100.with_settings({"batch_size": 64})


def plan(seed: int = 0, epoch: int = 0, images: int = 1000) -> EpochPlan:
    return plan_epoch(dataclasses.replace(RECIPE, seed=seed), epoch, images, CPU)


def tensors(plan: EpochPlan) -> dict[str, Tensor]:
    """All that is random in a plan."""
    draws = {field.name: getattr(plan.draws, field.name) for field in dataclasses.fields(Draws)}
    return {"order": plan.order, "lam": plan.lam} | draws


def test_alternating_flips_show_each_image_both_ways_in_two_epochs() -> None:
    recipe = RECIPE.with_settings({"augmentation": "flip-crop", "mixup_alpha": 0})
    flips = []
    for epoch in range(3):
        plan = plan_epoch(recipe, epoch, 960, CPU)  # whole batches: every image once
        flips.append((plan.draws.matrix[:, 0, 0] < 0)[plan.order.argsort()])
    assert torch.equal(flips[0], ~flips[1])
    assert torch.equal(flips[0], flips[2])
    assert 380 < flips[0].sum() < 580


def test_the_plan_is_a_function_of_seed_and_epoch() -> None:
    for epoch in (0, 59, 60, 99):
        one, other = tensors(plan(3, epoch)), tensors(plan(3, epoch))
        for name in one:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("other", [(0, 1), (1, 0), (1, 1), (0, 99), (2**31, 0)])
def test_another_seed_or_epoch_changes_every_part_of_the_plan(other: tuple[int, int]) -> None:
    here, there = tensors(plan(0, 0)), tensors(plan(*other))
    for name in here.keys() - ({"hsv"} if other[1] >= 60 else set()):
        assert not torch.equal(here[name], there[name]), name


def test_seed_and_epoch_do_not_stand_for_each_other() -> None:
    orders = {tuple(plan(seed, epoch).order.tolist()) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_50_000_images_make_195_steps_of_256_and_no_image_comes_twice() -> None:
    whole = plan_epoch(s8.SEED_100, 0, 50_000, CPU)
    assert whole.steps == 195
    assert whole.lam.shape == (195,)
    assert whole.order.shape == (195 * 256,)
    assert len(whole.order.unique()) == 195 * 256
    assert 0 <= int(whole.order.min()) <= int(whole.order.max()) < 50_000
    assert all(len(tensor) == 195 * 256 for name, tensor in tensors(whole).items() if name != "lam")


def test_the_images_left_out_are_others_each_epoch() -> None:
    left_out = [set(range(1000)) - set(plan(epoch=epoch).order.tolist()) for epoch in range(10)]
    assert all(len(images) == 1000 % 64 for images in left_out)
    assert len(set.union(*left_out)) > 200


def test_a_whole_number_of_batches_leaves_nobody_out() -> None:
    whole = plan(images=640)
    assert whole.steps == 10
    assert sorted(whole.order.tolist()) == list(range(640))


def test_the_plan_follows_the_recipes_phase() -> None:
    first, second = plan(epoch=59), plan(epoch=60)
    assert first.draws.hsv.any()
    assert not second.draws.hsv.any()  # `reduced` leaves colours alone
    off = plan_epoch(RECIPE.with_settings({"mixup_alpha": 0, "augmentation": "none"}), 0, 1000, CPU)
    assert off.lam.eq(1).all()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_each_global_batch_exactly(world: int) -> None:
    whole = plan()
    for step in range(whole.steps):
        batches = [whole.batch(step, Ranks(rank, world)) for rank in range(world)]
        shares = [batch.order[batch.before :] for batch in batches]
        assert {len(share) for share in shares} == {64 // world}
        assert torch.equal(torch.cat(shares), whole.order[step * 64 : (step + 1) * 64])


def dropout_stream(seed: int, epoch: int, ranks: Ranks = ALONE) -> tuple[float, ...]:
    """What dropout draws first."""
    with torch.random.fork_rng():
        seed_dropout(dataclasses.replace(RECIPE, seed=seed), epoch, ranks)
        return tuple(torch.rand(8).tolist())


def test_dropout_differs_by_seed_epoch_and_rank_and_by_nothing_else() -> None:
    places = [(seed, epoch, rank) for seed in range(3) for epoch in range(3) for rank in range(4)]
    streams = {dropout_stream(seed, epoch, Ranks(rank, 4)) for seed, epoch, rank in places}
    assert len(streams) == len(places)
    assert dropout_stream(1, 2, Ranks(3, 4)) == dropout_stream(1, 2, Ranks(3, 4))
    assert dropout_stream(1, 2) == dropout_stream(1, 2, Ranks(0, 4))  # rank 0 draws as a run alone does


def test_dropout_does_not_replay_the_random_numbers_of_the_plan() -> None:
    for epoch in range(3):
        plan_stream = torch.rand(8, generator=torch.Generator().manual_seed(derived_seed(RECIPE.seed, epoch)))
        assert dropout_stream(RECIPE.seed, epoch) != tuple(plan_stream.tolist())


def test_the_plan_neither_reads_nor_moves_the_global_random_state() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = tensors(plan())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        other = tensors(plan())
    assert all(torch.equal(one[name], other[name]) for name in one)
