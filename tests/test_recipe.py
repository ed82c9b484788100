"""The schedule is the seed's, step by step as torch's own schedulers run it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import s8lib as s8

STEPS = 50_000 // 256  # of an epoch: 195
SEEDS = [pytest.param(s8.SEED_100, id="seed-100"), pytest.param(s8.SEED_200, id="seed-200")]


def every_lr(recipe: s8.Recipe) -> list[float]:
    """The rate of every step of a run."""
    return [recipe.at(step / STEPS).lr for step in range(recipe.epochs * STEPS)]


def torch_lr(base: float, steps: int, schedule: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    """The rate of every step under one of torch's schedulers, stepped once per optimizer step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("recipe", "stretch"), [(s8.SEED_100, 1), (s8.SEED_200, 2)], ids=["seed-100", "seed-200"])
def test_every_step_has_the_rate_torch_schedulers_give(recipe: s8.Recipe, stretch: int) -> None:
    warmup, cycle, phase1, phase2 = (epochs * stretch * STEPS for epochs in (5, 25, 60, 40))
    rising = torch_lr(0.1, warmup, lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, warmup))
    restarting = torch_lr(
        0.1, phase1 + 1, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=cycle, eta_min=1e-4)
    )
    falling = torch_lr(
        restarting[phase1], phase2, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=phase2, eta_min=1e-5)
    )
    expected = rising + restarting[warmup:phase1] + falling
    assert every_lr(recipe) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("recipe", "restarts"), [(s8.SEED_100, (25, 50)), (s8.SEED_200, (50, 100))])
def test_after_warmup_the_rate_jumps_up_at_the_restarts_and_nowhere_else(
    recipe: s8.Recipe, restarts: tuple[int, ...]
) -> None:
    rates = every_lr(recipe)
    warmup = int(recipe.warmup_epochs * STEPS)
    jumps = [step for step in range(warmup + 1, len(rates)) if rates[step] > rates[step - 1]]
    assert jumps == [epoch * STEPS for epoch in restarts]
    assert recipe.restarts == restarts
    assert all(rates[jump] == recipe.lr_peak for jump in jumps)


@pytest.mark.parametrize(("recipe", "handover"), [(s8.SEED_100, 60), (s8.SEED_200, 120)])
def test_phase_2_starts_from_the_rate_phase_1_ends_with(recipe: s8.Recipe, handover: int) -> None:
    before, after = recipe.at(math.nextafter(handover, 0)).lr, recipe.at(handover).lr
    assert before == pytest.approx(after, rel=1e-12)
    assert after == pytest.approx(1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi * 10 / 25)) / 2)
    assert after == pytest.approx(0.0655, abs=5e-5)


@pytest.mark.parametrize("recipe", SEEDS)
def test_the_run_ends_at_its_lowest_rate(recipe: s8.Recipe) -> None:
    rates = every_lr(recipe)
    assert rates[-1] == min(rates) == pytest.approx(1e-5, abs=1e-8)
    assert recipe.at(recipe.epochs).lr == pytest.approx(1e-5, rel=1e-12)


@pytest.mark.parametrize("recipe", SEEDS)
def test_warmup_reaches_the_peak_and_every_cycle_starts_from_it(recipe: s8.Recipe) -> None:
    assert recipe.at(0).lr == 0.01
    assert recipe.at(recipe.warmup_epochs / 2).lr == pytest.approx(0.055)
    # the warm-up lies inside cycle 1, so at its end the cosine is already 5/25 of the way down
    assert recipe.at(recipe.warmup_epochs).lr == pytest.approx(
        1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi / 5)) / 2
    )
    assert recipe.at(math.nextafter(recipe.warmup_epochs, 0)).lr == pytest.approx(0.1)
    assert all(recipe.at(epoch).lr == 0.1 for epoch in recipe.restarts)


@pytest.mark.parametrize(
    ("epoch", "dropout", "mixup_alpha", "augmentation"),
    [
        *(
            (epoch, 0.3, 0.2, "full")
            for epoch in (0, 4.999, 5, 24.999, 25, 49.999, 50, 59, 59 + 194 / 195, 59.9999)
        ),
        *((epoch, 0.2, 0.15, "reduced") for epoch in (60, 60 + 1 / 195, 61, 99.999, 100)),
    ],
)
def test_knobs_either_side_of_every_boundary(
    epoch: float, dropout: float, mixup_alpha: float, augmentation: str
) -> None:
    for recipe, at in ((s8.SEED_100, epoch), (s8.SEED_200, 2 * epoch)):
        knobs = recipe.at(at)
        assert (knobs.dropout, knobs.mixup_alpha, knobs.augmentation) == (dropout, mixup_alpha, augmentation)
        assert knobs.label_smoothing == 0.1
        assert recipe.phase(at) == (1 if augmentation == "full" else 2)


def test_each_phase_has_its_own_side_of_the_image() -> None:
    recipe = dataclasses.replace(s8.SEED_100, image_size=(24, 32))
    assert [recipe.at(epoch).image_size for epoch in (0, 59.999, 60, 100)] == [24, 24, 32, 32]
    assert {s8.SEED_100.at(epoch).image_size for epoch in (0, 59.999, 60, 100)} == {32}


@pytest.mark.parametrize("epoch", [-1e-9, -1, 100.001, 101, math.inf, math.nan])
def test_a_position_outside_the_run_is_refused(epoch: float) -> None:
    with pytest.raises(ValueError, match="outside this recipe's 0 to 100"):
        s8.SEED_100.at(epoch)


def test_seed_100_is_the_seeds_table() -> None:
    assert s8.SEED_100.to_dict() == {
        "name": "seed-100",
        "model": "wrn-28-10",
        "epochs": 100,
        "phase1_epochs": 60,
        "batch_size": 256,
        "seed": 0,
        "lr_start": 0.01,
        "lr_peak": 0.1,
        "lr_floor": 0.0001,
        "lr_final": 0.00001,
        "warmup_epochs": 5,
        "cycle_epochs": 25,
        "momentum": 0.9,
        "nesterov": False,
        "anneal": "cosine",
        "optimizer": "sgd",
        "muon_lr": 0.13,
        "weight_decay": 0.001,
        "label_smoothing": 0.1,
        "dropout": [0.3, 0.2],
        "mixup_alpha": [0.2, 0.15],
        "augmentation": ["full", "reduced"],
        "image_size": [32, 32],
        "patience": 15,
    }


def test_seed_200_is_seed_100_with_every_count_of_epochs_doubled() -> None:
    doubled = {"epochs": 200, "phase1_epochs": 120, "warmup_epochs": 10, "cycle_epochs": 50, "patience": 30}
    assert dataclasses.replace(s8.SEED_100, name="seed-200", **doubled) == s8.SEED_200
    assert dataclasses.replace(s8.SEED_100.stretched(2), name="seed-200") == s8.SEED_200


@pytest.mark.parametrize("factor", [0.2, 0.4, 0.5, 1, 2, 3, 7])
def test_stretching_keeps_the_shape_of_every_curve(factor: float) -> None:
    stretched = s8.SEED_100.stretched(factor)
    assert stretched.epochs == 100 * factor
    for percent in range(1000):  # between the boundaries, where rounding cannot pick the other side
        fraction = (percent + 0.5) / 1000
        here, there = s8.SEED_100.at(100 * fraction), stretched.at(stretched.epochs * fraction)
        assert there.lr == pytest.approx(here.lr, rel=1e-9)
        assert dataclasses.replace(there, lr=here.lr) == here


@pytest.mark.parametrize("factor", [0.001, 0.01, 0.02, 0.1, 0.15, 1 / 3, 0.99, 1.01, math.pi, 10])
@pytest.mark.parametrize("name", ["seed-100", "seed-200", "quick", "quick-long"])
def test_stretching_by_any_factor_gives_a_recipe_that_can_be_trained(name: str, factor: float) -> None:
    recipe = s8.PRESETS[name].stretched(factor)
    assert recipe.epochs == max(1, round(s8.PRESETS[name].epochs * factor))
    assert 0 <= recipe.phase1_epochs <= recipe.epochs
    assert recipe.patience is None or recipe.patience >= 1
    rates = [recipe.at(epoch / 10).lr for epoch in range(10 * recipe.epochs)]
    assert all(0 < rate <= recipe.lr_peak for rate in rates)
    assert s8.Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("cycle", range(10, 61))
def test_a_stretched_recipe_has_the_same_restarts_and_rates_at_the_same_places_of_its_phases(cycle: int) -> None:
    recipe = s8.Recipe(cycle_epochs=cycle)
    phase2 = recipe.epochs - recipe.phase1_epochs
    for epochs in range(2, 401):
        stretched = recipe.stretched(epochs / recipe.epochs)
        begin = stretched.phase1_epochs
        assert len(stretched.restarts) == len(recipe.restarts)
        assert stretched.at(begin).lr == pytest.approx(recipe.at(recipe.phase1_epochs).lr, rel=1e-6)
        for part in (0.03, 0.21, 0.49, 0.73, 0.98):
            there, here = stretched.at(part * begin), recipe.at(part * recipe.phase1_epochs)
            assert there.lr == pytest.approx(here.lr, rel=1e-6)
            there = stretched.at(begin + part * (epochs - begin))
            assert there.lr == pytest.approx(recipe.at(recipe.phase1_epochs + part * phase2).lr, rel=1e-6)
        for restart in stretched.restarts:
            assert stretched.at(restart).lr == pytest.approx(recipe.lr_peak)


def test_rounding_in_a_stretch_does_not_count_the_cycle_before() -> None:
    recipe = dataclasses.replace(s8.SEED_100.stretched(0.58), patience=5)  # restarts at 14.5 and 29, phase 2 at 35
    rising = [10.0 + epoch for epoch in range(29)] + [20.0 + epoch for epoch in range(6)]
    assert stopped_after(recipe, rising) is None


def test_stretching_says_so_in_the_name_once() -> None:
    assert s8.SEED_100.stretched(1) == s8.SEED_100
    assert s8.SEED_100.stretched(0.1).name == "seed-100-10ep"
    assert s8.SEED_100.stretched(0.1).stretched(3).name == "seed-100-30ep"


@pytest.mark.parametrize("quick", [s8.QUICK, s8.QUICK_LONG], ids=["quick", "quick-long"])
def test_quick_has_two_phases_and_ends_low(quick: s8.Recipe) -> None:
    assert {quick.phase(epoch) for epoch in range(quick.epochs)} == {1, 2}
    assert quick.at(quick.epochs).lr < quick.lr_peak / 1000


def test_the_presets_are_found_by_their_names() -> None:
    recipes = {"seed-100": s8.SEED_100, "seed-200": s8.SEED_200, "quick": s8.QUICK, "quick-long": s8.QUICK_LONG}
    assert recipes == s8.PRESETS


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        s8.SEED_100.epochs = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        s8.SEED_100.at(0).lr = 1.0


def test_a_recipe_of_one_phase_only_is_a_recipe() -> None:
    first = s8.Recipe(epochs=50, phase1_epochs=50)
    assert {first.phase(epoch) for epoch in range(51)} == {1}
    second = s8.Recipe(epochs=50, phase1_epochs=0, warmup_epochs=0)
    assert {second.phase(epoch) for epoch in range(51)} == {2}
    assert [second.at(0).lr, second.at(50).lr] == pytest.approx([0.1, 1e-5])


# JSON and settings


@pytest.mark.parametrize(
    "recipe", [*s8.PRESETS.values(), s8.SEED_100.stretched(1 / 3), s8.Recipe(patience=None, nesterov=True)]
)
def test_json_holds_the_whole_recipe(recipe: s8.Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path / "recipe.json")
    assert s8.Recipe.load(tmp_path / "recipe.json") == recipe
    assert s8.Recipe.load(str(tmp_path / "recipe.json")) == recipe
    assert json.loads((tmp_path / "recipe.json").read_text()) == recipe.to_dict()
    assert s8.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).to_dict() == recipe.to_dict()


def test_one_value_for_a_pair_stands_for_both_phases() -> None:
    changed = s8.SEED_100.with_settings({"dropout": 0.1, "mixup_alpha": 0, "augmentation": "none", "epochs": 80})
    assert changed == dataclasses.replace(
        s8.SEED_100, dropout=(0.1, 0.1), mixup_alpha=(0, 0), augmentation=("none", "none"), epochs=80
    )
    assert s8.SEED_100.with_settings({"dropout": [0.1, 0.0]}).dropout == (0.1, 0.0)
    assert s8.SEED_100.with_settings({}) == s8.SEED_100


def test_settings_change_this_recipe_not_the_default_one() -> None:
    assert s8.QUICK.with_settings({"seed": 5}) == dataclasses.replace(s8.QUICK, seed=5)


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", "9"), ("lr", 1), ("dropout", [0.3, 1.0]), ("lr_start", 0.2)]
)
def test_however_a_recipe_is_made_it_is_checked(tmp_path: Path, field: str, value: Any) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({field: value}))
    for make in (
        lambda: s8.Recipe(**{field: value}),
        lambda: dataclasses.replace(s8.QUICK, **{field: value, "lr_peak": 0.1}),
        lambda: s8.Recipe.from_dict({field: value}),
        lambda: s8.SEED_100.with_settings({field: value}),
        lambda: s8.Recipe.load(file),
    ):
        with pytest.raises(s8.RecipeError, match=field):
            make()


# early stopping


def stopped_after(recipe: s8.Recipe, accuracy: list[float]) -> int | None:
    """The epoch (from 1) after which the run ends early."""
    return next((n for n in range(1, len(accuracy) + 1) if recipe.out_of_patience(accuracy[:n])), None)


def healthy() -> list[float]:
    """SEED_100 as it goes: each restart costs 20 points, made good after 20 epochs; phase 2 climbs to the end."""
    first = [10 + 2.2 * epoch for epoch in range(25)]  # to 62.8
    second = [43 + epoch for epoch in range(20)] + [63 + 0.5 * epoch for epoch in range(5)]  # to 65
    third = [45 + 0.5 * epoch for epoch in range(10)]  # cut short by phase 2, far below the best
    phase2 = [50 + 0.8 * epoch for epoch in range(40)]  # passes 65 only at its 20th epoch
    return first + second + third + phase2


def test_a_healthy_run_is_never_ended_though_restarts_cost_more_epochs_than_patience() -> None:
    accuracy = healthy()
    bests = [max(range(n), key=accuracy.__getitem__) for n in range(1, 101)]
    assert max(n - best for n, best in enumerate(bests)) >= 20  # what patience over the whole run would have ended
    assert stopped_after(s8.SEED_100, accuracy) is None
    assert stopped_after(s8.SEED_200, [value for value in accuracy for _ in range(2)]) is None


def test_a_run_that_is_flat_for_15_epochs_of_phase_2_is_ended() -> None:
    accuracy = healthy()[:70] + [57.2] * 30  # the best of phase 2 is its 10th epoch, the run's 70th
    assert accuracy[69] == pytest.approx(57.2)
    assert stopped_after(s8.SEED_100, accuracy) == 89  # 15 epochs after the first five that are as good


def test_one_lucky_epoch_does_not_end_a_run_that_climbs_slowly() -> None:
    accuracy = healthy()[:60] + [57 + 0.25 * epoch for epoch in range(40)]
    accuracy[62] += 4
    assert max(accuracy[63:78]) < accuracy[62]
    assert stopped_after(s8.SEED_100, accuracy) is None


@pytest.mark.parametrize(("begins", "patience"), [(0, 9), (25, 15), (50, 5), (60, 15)])
def test_patience_starts_anew_at_every_restart_and_at_the_phase_change(begins: int, patience: int) -> None:
    recipe = dataclasses.replace(s8.SEED_100, patience=patience)
    peak = 90.0 - begins  # each cycle below the one before
    before = [99.0 - 0.1 * epoch if epoch >= begins - 3 else float(epoch) for epoch in range(begins)]
    assert not recipe.out_of_patience(before)
    flat = before + [peak] * 40
    assert stopped_after(recipe, flat) == begins + patience // 3 + patience


def test_patience_counts_epochs_since_the_first_best() -> None:
    recipe = dataclasses.replace(s8.SEED_100, patience=3)  # a third of it is one epoch
    assert stopped_after(recipe, [10, 20, 19, 18, 21, 21, 21, 21, 21]) == 8
    assert stopped_after(recipe, [10, 20, 19, 18, 17]) == 5
    assert stopped_after(recipe, [10, 20, 19, 18, 20.01, 1, 1]) is None


def test_a_shortened_run_keeps_its_patience() -> None:
    assert [s8.SEED_100.stretched(factor).patience for factor in (0.05, 0.5, 1, 2)] == [15, 15, 15, 30]


def test_no_patience_never_ends_a_run() -> None:
    recipe = dataclasses.replace(s8.SEED_100, patience=None)
    assert stopped_after(recipe, [50.0] + [1.0] * 99) is None
    assert not s8.SEED_100.out_of_patience([])


def test_patience_knows_restarts_that_fall_inside_an_epoch() -> None:
    recipe = dataclasses.replace(s8.SEED_100.stretched(0.1), patience=2)
    assert (recipe.restarts, recipe.phase1_epochs) == ((2.5, 5.0), 6)
    assert stopped_after(recipe, [5, 30, 20, 21, 22, 10, 11, 12, 13, 14]) is None
    assert stopped_after(recipe, [5, 30, 20, 21, 22, 10, 11, 10, 10, 14]) == 9


@pytest.mark.parametrize("epochs", [*range(1, 40), 400])
def test_a_linear_rate_keeps_its_shape_in_a_run_of_any_length(epochs: int) -> None:
    recipe = s8.QUICK.stretched(epochs / s8.QUICK.epochs)
    for part in (0, 0.1, 0.25, 0.6, 1):
        assert recipe.at(part * epochs).lr == pytest.approx(s8.QUICK.at(part * s8.QUICK.epochs).lr, rel=1e-6)


def test_a_linear_rate_ends_at_its_last_value_even_after_nothing_but_warm_up() -> None:
    recipe = s8.Recipe(epochs=4, phase1_epochs=4, warmup_epochs=4, cycle_epochs=4, anneal="linear")
    assert recipe.at(4).lr == recipe.lr_final
