"""How long a run will take, in words."""

from __future__ import annotations

import re

import pytest

import s8lib as s8
from s8lib.forecast import forecast, in_words, seconds_left, until
from s8lib.presets import REACHED
from tests.runs import train


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (61, "2 min"), (3599, "1 h 0 min"), (3 * 3600 + 59 * 60 + 59, "4 h 0 min")],
)
def test_a_duration_is_told_as_precisely_as_it_is_known(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_the_end_is_a_clock_time_and_says_which_day() -> None:
    assert re.fullmatch(r"until \d\d:\d\d( tomorrow)?", until(60))
    assert until(86_400).endswith(" tomorrow")
    assert until(3 * 86_400).endswith(" in 3 days")


def test_epochs_of_small_images_count_by_their_area() -> None:
    recipe = s8.QUICK.with_settings({"epochs": 4, "phase1_epochs": 2, "warmup_epochs": 1, "image_size": (16, 32)})
    assert seconds_left(recipe, 0, 0, 1.0) == 2 * 1 + 2 * 4
    assert seconds_left(recipe, 3, 2, 4.0) == 4
    assert seconds_left(recipe, 4, 3, 4.0) == 0


def test_a_long_run_is_told_what_would_be_shorter() -> None:
    long = forecast(s8.SEED_100, 0, 0.2, 50_000, 10_000)
    assert re.match(r"about 1 h 10 min, until .*; the recipe quick shows a result .*goes on when", long)
    assert re.fullmatch(r"about \d+ s, until [^;]*\.", forecast(s8.QUICK, 0, 0.01, 50_000, 10_000))
    for step in (0.01, 5.0):
        resumed = forecast(s8.QUICK, 2, step, 50_000, 10_000)
        assert resumed.startswith("goes on after epoch 2: about ")
        assert "a new run" not in resumed


@pytest.mark.parametrize("minutes", [21, 22, 25, 30, 40, 57, 60, 90, 120, 147, 180, 240])
def test_the_run_that_would_end_within_twenty_minutes_is_the_longest_that_does(minutes: float) -> None:
    def told(epochs: int) -> str:
        recipe = s8.QUICK.stretched(epochs / s8.QUICK.epochs)
        step = minutes / 12.5 * (recipe.at(0).image_size / 32) ** 2  # seconds
        return forecast(recipe, 0, step, 50_000, 10_000)

    named = re.search(r"a new run of (\d+) epochs? \(--epochs \1\) would", told(s8.QUICK.epochs))
    within = [epochs for epochs in range(1, s8.QUICK.epochs) if "Interrupted" not in told(epochs)]  # none is long
    if within and max(within) in REACHED:
        assert f"within 20 min, at about {REACHED[max(within)]:.0f}%" in told(s8.QUICK.epochs)
    assert (int(named[1]) if named else None) == (max(within) if within else None)


@pytest.mark.parametrize(("step", "epochs"), [(0.8, 9), (2.4, 3)])
def test_beside_a_long_run_of_the_small_network_quick_is_what_would_be_shorter(step: float, epochs: int) -> None:
    for longer in (s8.QUICK_LONG, s8.QUICK.stretched(20 / 9), s8.QUICK_LONG.with_settings({"batch_size": 256})):
        told = forecast(longer, 0, step * longer.batch_size / 512, 50_000, 10_000)
        of = f"{epochs} epochs (--recipe quick --epochs {epochs})"
        assert f"; a new run of {of} would end within 20 min, at about {REACHED[epochs]:.0f}%. " in told


@pytest.mark.parametrize("changed", [{"lr_peak": 0.1}, {"cycle_epochs": 0.01}, {"name": "x" * 99}])
def test_of_a_recipe_of_ones_own_no_accuracy_is_promised(changed: dict[str, object]) -> None:
    assert "at about" not in forecast(s8.QUICK.with_settings(changed), 0, 1.5, 50_000, 10_000)


def test_a_run_says_how_long_it_will_take_and_after_each_epoch_what_is_left(tiny: s8.Cifar100) -> None:
    lines: list[str] = []
    train(None, tiny, lines=lines)
    (first,) = (number for number, line in enumerate(lines) if line.startswith("epoch   1/"))
    assert re.match(r"about \d+ (s|min), until \d\d:\d\d", lines[first - 1])
    assert [bool(re.search(r" left, until \d\d:\d\d", line)) for line in lines[first : first + 6]] == [
        True
    ] * 5 + [False]
