"""Every measured figure that README.md and results/README.md quote is the one in the file it came from."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest

import s8lib as s8
from benchmarks import results_table
from s8lib.presets import REACHED

ROOT = Path(s8.__file__).parents[1]
PAGES = {page: page.read_text(encoding="utf-8") for page in (results_table.README, results_table.RESULTS)}
README = PAGES[results_table.README]
RUNS = sorted(path.parent for path in (ROOT / "results").rglob("epoch_log.csv"))
RECORDS = {"epoch_log.csv", "recipe.json", "environment.json"}
ARTIFACTS = RECORDS | {"report.json", "graph.jpg", "epoch_log.mov"}


def name_of(run: Path) -> str:
    return run.relative_to(ROOT / "results").as_posix()


def rows_of(page: Path) -> dict[str, dict[str, str]]:
    """The table's cells by title, by the name of the run."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGES[page].splitlines() if "|" in line]
    titles = next(cells for cells in lines if cells[0] == "run")
    found = {}
    for cells in lines:
        if link := re.fullmatch(r"\[(.+)\]\((.+)\)", cells[0]):
            assert (page.parent / link[2] / "epoch_log.csv").is_file(), f"{link[2]} is no result"
            found[link[1]] = dict(zip(titles, cells, strict=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=["README", "results/README"])
def test_the_tables_are_what_the_files_say_now(page: Path) -> None:
    again = "run `python -m benchmarks.results_table`"
    assert PAGES[page] == results_table.written(page), again


@pytest.mark.parametrize("page", PAGES, ids=["README", "results/README"])
def test_every_quoted_figure_equals_the_file_it_came_from(page: Path) -> None:
    rows = rows_of(page)
    first = {run.parent: run for run in reversed(RUNS)}  # README shows these, results/README.md all
    shown = [run for run in RUNS if page == results_table.RESULTS or run == first[run.parent]]
    assert list(rows) == [name_of(run) for run in shown]
    for run in shown:
        log, row = s8.EpochLog.read(run / "epoch_log.csv"), rows[name_of(run)]
        assert row["final epoch"].startswith(f"{log[-1].test_acc:.2f}% @{log[-1].epoch}")
        assert row["best epoch"] == f"{log.best.test_acc:.2f}% @{log.best.epoch}"
        assert float(row["minutes"]) == pytest.approx(sum(epoch.seconds for epoch in log) / 60, abs=0.051)
        machine = json.loads((run / "environment.json").read_text())[-1]
        assert machine["device_name"] in row["hardware"]
        assert machine["torch"] in row["hardware"]
        assert int(row["seed"]) == json.loads((run / "recipe.json").read_text())["seed"]


def test_the_table_of_results_quotes_the_reports_and_no_other_figure() -> None:
    for run in RUNS:
        row, log = rows_of(results_table.RESULTS)[name_of(run)], s8.EpochLog.read(run / "epoch_log.csv")
        assert row["final top-5"] == f"{log[-1].test_top5:.2f}%"
        assert int(row["images/s"].replace(",", "")) == pytest.approx(
            len(log) / sum(1 / epoch.images_per_s for epoch in log), abs=0.51
        )
        measured = [row[title] for title in ("final ECE", "with start and saving", "with evaluation", "MFU")]
        if not (run / "report.json").exists():
            assert measured == ["-"] * 4
            continue
        report = json.loads((run / "report.json").read_text())
        performance = report["performance"]
        figures = (
            report["final_measured_again"]["ece"],
            performance["minutes"],
            performance["images_per_s_with_evaluation"],
            performance["mfu_percent"],
        )
        for cell, figure in zip(measured, figures, strict=True):
            decimals = len(cell.strip("%").partition(".")[2])
            assert float(cell.strip("%").replace(",", "")) == round(figure, decimals)


def test_a_row_tells_the_final_epoch_from_the_best_and_quotes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, run = tmp_path / "results" / "README.md", tmp_path / "results" / "quick-cpu" / "seed-0"
    shutil.copytree(next(there for there in RUNS if there.parent.name == "quick-cpu"), run)
    rows = list(s8.EpochLog.read(run / "epoch_log.csv"))
    rows[-1] = dataclasses.replace(rows[-1], test_acc=50.0, test_top5=70.0)
    (run / "epoch_log.csv").write_text(s8.EpochLog(rows).to_csv())
    measured = {"minutes": 14.26, "images_per_s_with_evaluation": 1599.6, "mfu_percent": 3.14}
    (run / "report.json").write_text(json.dumps({"performance": measured, "final_measured_again": {"ece": 2.718}}))
    monkeypatch.setattr(results_table, "ROOT", tmp_path)
    row = results_table.Result.read(run).row(page)
    assert (row["final epoch"], row["final top-5"], row["final ECE"]) == ("50.00% @9", "70.00%", "2.72%")
    assert row["best epoch"] == f"{rows[-2].test_acc:.2f}% @8"
    assert (row["with start and saving"], row["with evaluation"], row["MFU"]) == ("14.3", "1,600", "3.1%")
    (run / "epoch_log.csv").write_text(s8.EpochLog(rows[:3]).to_csv())
    assert results_table.Result.read(run).row(page)["final epoch"].endswith("@3 of 9"), (
        "a run that is not finished"
    )


def test_every_percentage_in_the_pages_is_in_some_run() -> None:
    known = set()
    for run in RUNS:
        log = s8.EpochLog.read(run / "epoch_log.csv")
        known |= {log[-1].test_acc, log[-1].test_top5, log.best.test_acc}
        if (run / "report.json").exists():
            known.add(round(json.loads((run / "report.json").read_text())["final_measured_again"]["ece"], 2))
    for kind in {run.parent for run in RUNS}:
        finals = [s8.EpochLog.read(run / "epoch_log.csv")[-1].test_acc for run in RUNS if run.parent == kind]
        known.add(round(statistics.mean(finals), 2))
    for page, text in PAGES.items():
        quoted = {float(figure) for figure in re.findall(r"\b(\d+\.\d\d)%", text)}
        assert quoted <= known, f"{page.name}: {quoted - known} come from no file"


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_a_result_is_of_the_preset_that_it_claims(run: Path) -> None:
    recipe = s8.Recipe.load(run / "recipe.json")
    preset = recipe.name.removesuffix(f"-{recipe.epochs}ep")
    assert recipe == s8.choose_recipe(preset, model=recipe.model, seed=recipe.seed, epochs=recipe.epochs)
    assert run.name == f"seed-{recipe.seed}"
    assert run.parent.name.startswith(recipe.name)


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_a_result_is_small_and_holds_no_weights(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert RECORDS <= names <= ARTIFACTS
    for path in run.iterdir():
        assert path.stat().st_size < 3 * 2**20, f"{path} is too large for the repository"


def test_a_report_agrees_with_its_log_and_names_what_made_it() -> None:
    for path in (run / "report.json" for run in RUNS if (run / "report.json").exists()):
        report, log = json.loads(path.read_text()), s8.EpochLog.read(path.with_name("epoch_log.csv"))
        assert re.fullmatch(r"[0-9a-f]{40}", report["commit"]), f"{path}: results come from a committed state"
        for which, row in (("final", log[-1]), ("best", log.best)):
            assert report[which]["epoch"] == row.epoch
            assert report[f"{which}_measured_again"]["top1"] == pytest.approx(row.test_acc, abs=0.05)


def test_what_a_forecast_promises_was_measured() -> None:
    logs = {run.parent.name: s8.EpochLog.read(run / "epoch_log.csv") for run in RUNS if run.name == "seed-0"}
    measured = {len(log): round(log[-1].test_acc, 2) for name, log in logs.items() if name.startswith("quick-")}
    assert {epochs: measured.get(epochs) for epochs in REACHED} == REACHED


def test_readme_says_what_has_not_been_measured_and_nothing_that_has() -> None:
    measured = {json.loads((run / "recipe.json").read_text())["name"] for run in RUNS}
    sentence = re.search(r"^(.*) ha(?:s|ve) not been measured yet", README, re.MULTILINE)
    unmeasured = set(re.findall(r"`([\w-]+)`", sentence[1])) if sentence else set()
    assert unmeasured == s8.PRESETS.keys() - measured


def test_readme_names_the_oldest_versions_that_are_allowed() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    torch, hub = (re.search(rf'"{name}>=([\d.]+)', declared)[1] for name in ("torch", r"huggingface_hub\[torch\]"))
    assert f"(torch {torch}, huggingface_hub {hub})" in README


def test_the_table_of_configurations_is_what_the_recipes_are() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if "|" in line]
    cells = {row[0]: row[1:] for row in rows if len(row) == 3}
    for column, recipe in enumerate((s8.SEED_100, s8.QUICK)):
        parameters = sum(weights.numel() for weights in s8.build_model(recipe.model).parameters())
        first = recipe.phase1_epochs
        for title, expected in {
            "": (recipe.name,),
            "network, parameters": (recipe.model, f"{parameters:,}"),
            "epochs (phase 1 + phase 2), batch": (f"{first} + {recipe.epochs - first}, {recipe.batch_size}",),
            "optimizer": (recipe.optimizer, recipe.momentum),
            "weight decay, label smoothing": (recipe.weight_decay, recipe.label_smoothing),
            "learning rate": (recipe.lr_start, recipe.lr_peak, recipe.warmup_epochs, recipe.lr_final),
            "dropout": recipe.dropout,
            "MixUp α": recipe.mixup_alpha,
            "augmentation": recipe.augmentation,
            "early stopping": (recipe.patience,),
        }.items():
            cell = cells[title][column].lower().replace("none", "0")
            figures = {float(figure) for figure in re.findall(r"\b\d[\d.]*(?:e-\d+)?\b", cell)}
            for value in (value or 0 for value in expected):
                assert value in cell if isinstance(value, str) else value in figures, f"{title}: {value}"
    assert dataclasses.replace(s8.SEED_100.stretched(2), name="seed-200") == s8.SEED_200


def test_parameter_counts_are_the_networks() -> None:
    count = sum(parameter.numel() for parameter in s8.build_model("resnet-42").parameters())
    assert f"`resnet-42` ({count:,} parameters)" in README
