"""Every measured figure in the README is the one in the logs it came from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import s8lib as s8

ROOT = Path(s8.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = sorted((ROOT / "results" / "quick-cpu").glob("seed-*"))


def test_the_quick_table_quotes_the_logs() -> None:
    rows = re.findall(
        r"^\| (\d) \| ([\d.]+)% \| ([\d.]+)% @(\d+) \| ([\d.]+) \| (\d+), (\d+) \|$", README, re.MULTILINE
    )
    assert [int(row[0]) for row in rows] == [int(run.name.removeprefix("seed-")) for run in RUNS]
    for (_, final, best, best_epoch, minutes, small, full), run in zip(rows, RUNS, strict=True):
        log = s8.EpochLog.read(run / "epoch_log.csv")
        assert (float(final), float(best), int(best_epoch)) == (
            log[-1].test_acc,
            log.best.test_acc,
            log.best.epoch,
        )
        assert float(minutes) == pytest.approx(sum(row.seconds for row in log) / 60, abs=0.051)
        for quoted, phase in ((small, 1), (full, 2)):
            speeds = [row.images_per_s for row in log if row.phase == phase]
            assert int(quoted) == round(sum(speeds) / len(speeds))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_result_is_of_the_preset_it_claims(run: Path) -> None:
    recipe = s8.Recipe.load(run / "recipe.json")
    assert recipe == s8.QUICK.with_settings({"seed": recipe.seed})


def test_the_recipe_table_lists_every_preset() -> None:
    for name, recipe in s8.PRESETS.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {recipe.model} | {recipe.epochs} | {recipe.batch_size} |" in row


def test_parameter_counts_are_the_networks() -> None:
    for name in ("wrn-28-10", "resnet-42"):
        count = sum(parameter.numel() for parameter in s8.build_model(name).parameters())
        assert re.search(rf"`{name}` \({count:,}", README), name
