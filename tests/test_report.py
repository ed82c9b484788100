"""What a run looks like: each picture, table and film shows what the run left."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import s8lib as s8
from s8lib import cli, report
from tests.runs import RECIPE, small_model, train

PARAMETERS = sum(tensor.numel() for tensor in small_model().parameters())


def made_up_log(recipe: s8.Recipe, epochs: int | None = None, best: int | None = None) -> s8.EpochLog:
    """A log of the right shape; its accuracies are no run's. `best` is the epoch that stands out."""
    log = s8.EpochLog()
    for epoch in range(epochs or recipe.epochs):
        knobs, accuracy = recipe.at(epoch), 90.25 if epoch + 1 == best else 80 * (epoch + 1) / recipe.epochs
        row = s8.Epoch(
            epoch + 1, recipe.phase(epoch), knobs.lr, knobs.dropout, knobs.mixup_alpha, knobs.augmentation,
            train_loss=3, train_acc=accuracy / 2, test_loss=2, test_acc=accuracy, test_top5=accuracy,
            best_acc=accuracy, images_per_s=2000, seconds=25,
        )  # fmt: skip
        log.append(row)
    return log


def axes_of(figure: Figure) -> dict[str, Axes]:
    return {ax.get_ylabel(): ax for ax in figure.axes}


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    found = [text.get_text() for ax in figure.axes for text in ax.texts]
    return " ".join([*found, *(text.get_text() for text in figure.texts), figure.get_supxlabel()])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> s8.RunFolder:
    """A finished run of RECIPE."""
    folder = tmp_path_factory.mktemp("report") / "run"
    train(folder, tiny)
    return s8.RunFolder(folder)


@pytest.fixture(scope="module")
def written(run: s8.RunFolder, tiny: s8.Cifar100) -> dict[str, Path]:
    return report.write(run, tiny, target=74, device="cpu")


def test_the_curves_mark_restarts_phases_target_and_the_best_epoch_beside_the_last() -> None:
    figure = report.curves(made_up_log(s8.SEED_100, best=97), s8.SEED_100, target=74)
    accuracy = axes_of(figure)["accuracy (%)"]
    dashed = [line.get_xdata()[0] for line in accuracy.lines if line.get_label() == "_restart"]
    assert dashed == [25, 50]
    edges = sorted({float(edge) for patch in accuracy.patches for edge in patch.get_extents().transformed(
        accuracy.transData.inverted()).intervalx})  # fmt: skip
    assert np.allclose(edges, [0, 60, 100])
    for told in (
        "best: 90.25% in epoch 97",
        "last: 80.00% in epoch 100",
        "target 74%",
        "not comparable with test",
    ):
        assert told in texts(figure)
    assert "the test set itself" in texts(figure)


def test_every_axis_says_what_it_shows_and_in_which_unit() -> None:
    assert list(axes_of(report.curves(made_up_log(s8.QUICK), s8.QUICK))) == [
        "accuracy (%)", "loss (nats)", "learning rate",
    ]  # fmt: skip
    knobs = list(axes_of(report.schedule(s8.SEED_100)))
    assert knobs == ["learning rate", "dropout", "MixUp α", "label\nsmoothing", "augmen-\ntation"]
    assert list(axes_of(report.schedule(s8.QUICK)))[-1] == "image side\n(pixels)"


def test_every_panel_of_the_curves_has_a_legend_and_no_line_strikes_the_best_epochs_label_out() -> None:
    figure = report.curves(made_up_log(s8.SEED_100, best=51), s8.SEED_100)
    *panels, rate = figure.axes
    for ax in panels:
        legend = ax.get_legend()
        assert legend is not None
        assert len(legend.get_texts()) == 2
    assert rate.get_legend() is None, "the plan is over"
    (label,) = (text for text in figure.axes[0].texts if "best" in text.get_text())
    paper = label.get_bbox_patch()
    assert paper is not None
    assert paper.get_alpha() is None
    assert paper.get_facecolor()[3] > 0.5
    assert label.zorder > max(line.zorder for line in figure.axes[0].lines)


def test_no_label_of_the_schedule_hangs_over_its_panel() -> None:
    for recipe in (s8.SEED_100, s8.QUICK):
        figure = report.schedule(recipe)
        figure.canvas.draw()
        for ax in figure.axes:
            label, panel = ax.yaxis.label.get_window_extent(), ax.get_window_extent()
            assert panel.y0 - 1 <= label.y0 <= label.y1 <= panel.y1 + 1, ax.get_ylabel()


def test_a_dollar_in_a_name_is_drawn_as_it_is_and_begins_no_formula() -> None:
    recipe = dataclasses.replace(s8.QUICK, name="cost$a_$")
    for figure in (report.curves(made_up_log(recipe), recipe), report.schedule(recipe)):
        assert figure._repr_png_()
        assert figure.get_suptitle().startswith("cost$a_$")


@pytest.mark.parametrize("epochs", [1, 37, 100])
def test_the_curves_show_the_logs_numbers_however_far_the_run_has_come(epochs: int) -> None:
    log = made_up_log(s8.SEED_100, epochs)
    accuracy = axes_of(report.curves(log, s8.SEED_100))["accuracy (%)"]
    shown = [list(line.get_ydata()) for line in accuracy.lines]
    assert [row.test_acc for row in log] in shown
    assert [row.train_acc for row in log] in shown


def test_the_schedule_table_holds_both_sides_of_every_boundary_of_the_seeds_recipe() -> None:
    rows = [line.split() for line in report.schedule_table(s8.SEED_100).splitlines()[1:]]
    assert [row[0] for row in rows] == ["0", "5", "25", "50", "60", "100"]
    table = report.schedule_table(s8.SEED_100)
    restart = next(line for line in table.splitlines() if line.startswith("     25"))
    assert "0.000100   0.100000" in restart
    handover = next(line for line in table.splitlines() if line.startswith("     60"))
    assert "0.065485   0.065485" in handover
    assert "0.2   0.15" in handover


def test_the_epoch_table_has_a_line_an_epoch_and_stars_the_best() -> None:
    lines = report.epoch_table(made_up_log(s8.SEED_100, best=97)).splitlines()
    assert len(lines) == 101
    assert [line.split()[0] for line in lines if "*" in line] == ["97*"]
    assert report.epoch_table(made_up_log(s8.SEED_100), last=5).splitlines()[1].startswith("   96")
    assert max(map(len, lines)) <= 115


def test_the_overview_names_network_recipe_epochs_best_final_and_sizes(run: s8.RunFolder) -> None:
    log, manifest = run.log(), run.manifest()
    best = manifest.files["best/model.safetensors"]
    rows = {line[:12].strip(): line[12:] for line in report.overview(run).splitlines()}
    assert rows["network"] == f"wrn-10-1, {PARAMETERS:,} parameters"
    assert rows["epochs"].startswith("6 of 6, in ")
    scores = "epoch {0.epoch}: {0.test_acc:.2f}% top-1, {0.test_top5:.2f}% top-5 on the test set"
    assert rows["best"] == scores.format(log.best)
    assert rows["chosen on"] == "the test set itself, which flatters it"
    assert rows["final"] == scores.format(log[-1])
    sha256 = f"sha256 {best.sha256[:9]}"
    assert rows["weights"].startswith(f"of epoch {manifest.best_epoch}, {best.bytes / 1e3:.1f} kB, {sha256}")
    assert rows["checkpoint"].startswith("of epoch 6, ")


def test_a_report_writes_every_artifact_that_can_be_made_and_the_folder_holds_no_other(
    run: s8.RunFolder, written: dict[str, Path]
) -> None:
    assert written.keys() == {name for name, artifact in report.ARTIFACTS.items() if artifact.make}
    for path in written.values():
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                assert image.format == ("JPEG" if path.suffix == ".jpg" else "PNG")
                assert image.width >= 1200
    held = {path.name for path in run.path.iterdir()} - {".lock"}
    assert held == set(report.ARTIFACTS) - {"model.onnx", "model.pt2"}
    listing = report.contents(run).splitlines()
    assert [line.split()[0] for line in listing if line[0] != " "] == [n for n in report.ARTIFACTS if n in held]
    assert [line.split()[0] for line in listing if line[0] == " "] == [f"epoch_00{n}.pt" for n in range(2, 7)]


def test_a_new_picture_is_one_row_of_the_table(run: s8.RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    row = report.Artifact("a new picture", lambda of: report.schedule(of.recipe))
    monkeypatch.setitem(report.ARTIFACTS, "new.png", row)
    path = report.write(run, film=False)["new.png"]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert report.contents(run).splitlines()[-1].endswith("a new picture")
    path.unlink()


def test_report_json_holds_the_runs_own_numbers(
    run: s8.RunFolder, written: dict[str, Path], tiny: s8.Cifar100
) -> None:
    log, numbers = run.log(), json.loads(written["report.json"].read_text())
    assert numbers["final"] == dataclasses.asdict(log[-1])
    assert numbers["best"] == dataclasses.asdict(log.best)
    assert numbers["best_chosen_on"] == "the test set itself, which flatters it"
    assert s8.Recipe.from_dict(numbers["recipe"]) == dataclasses.replace(RECIPE, model="wrn-10-1")
    assert numbers["model"] == {"name": "wrn-10-1", "parameters": PARAMETERS}
    assert numbers["minutes"] == pytest.approx(sum(row.seconds for row in log) / 60)
    measured = numbers["best_measured_again"]
    assert measured["n"] == len(tiny.test)
    assert measured["top1"] == pytest.approx(log.best.test_acc)
    assert measured["per_class"].keys() == set(tiny.classes)
    assert str(run.path) not in written["report.json"].read_text()


def test_a_measurement_stays_as_long_as_the_best_epoch_is_the_measured_one(
    run: s8.RunFolder, written: dict[str, Path]
) -> None:
    log, folder = run.log(), written["report.json"]
    report.write_log(run, log)
    assert "best_measured_again" in json.loads(folder.read_text())
    better = dataclasses.replace(log[-1], epoch=7, test_acc=99.0)
    report.write_log(run, s8.EpochLog([*log, better]))
    assert "best_measured_again" not in json.loads(folder.read_text())


@pytest.mark.parametrize("damage", ["", "null"])
def test_a_damaged_report_or_environment_is_told_and_stops_neither_report_nor_card(
    run: s8.RunFolder, tmp_path: Path, damage: str
) -> None:
    said: list[str] = []
    copy = s8.RunFolder(shutil.copytree(run.path, tmp_path / "run"), said.append)
    for name in ("report.json", "environment.json"):
        (copy.path / name).write_text(damage)
    report.write_log(copy, copy.log())
    assert sum("report.json" in line for line in said) == 1
    assert json.loads((copy.path / "report.json").read_text())["epochs_done"] == 6
    assert "## Results" in report.make_card(copy, "tester/net").text
    assert "epochs      6 of 6" in report.overview(copy)


def test_an_epoch_that_was_never_completely_saved_is_in_no_report(run: s8.RunFolder, tmp_path: Path) -> None:
    copy = s8.RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    with open(copy.path / "epoch_log.csv", "a", encoding="utf-8") as log:  # killed between log and manifest
        log.write("7,1,0.1,0.0,0.0,full,1.0,50.0,1.0,99.99,99.99,99.99,100.0,1.0\n")
    report.write(copy, film=False)
    assert json.loads((copy.path / "report.json").read_text())["epochs_done"] == 6
    assert "99.99" not in report.overview(copy) + report.make_card(copy, "tester/net").text


def test_without_the_package_for_it_a_film_is_left_out_and_told(
    run: s8.RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setitem(sys.modules, "torchsummary", None)
    said: list[str] = []
    written = report.write(run, say=said.append)
    assert written.keys() == {"graph.jpg", "schedule.png", "report.json"}
    assert any("imageio-ffmpeg" in line for line in said)
    assert any("torchsummary" in line for line in said)


def test_a_folder_without_an_epoch_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for show in (report.write, report.overview, report.read, lambda run: report.make_card(run, "tester/net")):
        with pytest.raises(s8.RunError, match="holds no finished epoch: train there first"):
            show(s8.RunFolder(tmp_path))
    assert cli.main(["report", "--run", str(tmp_path)]) == 2
    assert "holds no finished epoch" in capsys.readouterr().err


def test_a_run_is_not_measured_on_data_it_was_not_trained_on(
    run: s8.RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = s8.synthetic_cifar100(seed=1, train=200, test=100)
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    with pytest.raises(s8.RunError, match="not on synthetic, seed 1"):
        report.write(run, other)
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before
    monkeypatch.setattr("s8lib.report.choose_data", lambda where, **_: other)
    assert cli.main(["report", "--run", str(run.path), "--no-video", "--device", "cpu"]) == 0
    assert "was trained on synthetic, seed 0, not on synthetic, seed 1" in capsys.readouterr().out


def test_without_being_told_the_command_takes_the_runs_own_data_where_it_is_at_hand_and_ends_with_a_summary(
    run: s8.RunFolder, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("s8lib.report.choose_data", lambda where, **_: tiny)
    (run.path / "report.json").unlink(missing_ok=True)
    assert cli.main(["report", "--run", str(run.path), "--no-video", "--device", "cpu"]) == 0
    assert json.loads((run.path / "report.json").read_text())["best_measured_again"]["n"] == len(tiny.test)
    assert capsys.readouterr().out.splitlines()[-1] == run.log().summary()


def test_a_damaged_log_does_not_stop_a_report(run: s8.RunFolder, tmp_path: Path) -> None:
    damaged = s8.RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    (damaged.path / "epoch_log.csv").write_text("epoch,phase\n1,1\n")
    assert report.write(damaged, film=False).keys() >= {"graph.jpg", "report.json"}
    assert [row.epoch for row in report.read(damaged)[1]] == [1, 2, 3, 4, 5, 6]


def test_a_log_of_as_many_epochs_in_which_a_digit_was_changed_is_read_as_it_was_saved(
    run: s8.RunFolder, tmp_path: Path
) -> None:
    log, edited = run.log(), s8.RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    row = dataclasses.replace(log[-1], test_acc=log[-1].test_acc + 1)
    (edited.path / "epoch_log.csv").write_text(s8.EpochLog([*log[:-1], row]).to_csv())
    assert edited.log().to_csv() == log.to_csv()


def test_what_is_written_in_mid_training_draws_no_random_numbers(run: s8.RunFolder) -> None:
    noise = torch.get_rng_state()
    report.write_log(run, run.log())
    assert torch.equal(noise, torch.get_rng_state())


def test_the_learning_rate_ends_where_training_does_and_not_in_the_next_cycle() -> None:
    recipe = s8.QUICK.stretched(1 / 9)
    line = axes_of(report.schedule(recipe))["learning rate"].lines[0]
    assert line.get_ydata()[-1] < 1e-3
    assert line.get_xdata()[-1] == pytest.approx(1)


def test_the_report_imports_nothing_that_lies_above_it_and_no_function_hides_a_module() -> None:
    for path in Path(report.__file__).parent.glob("*.py"):
        above = r"(import|from) s8lib\.(trainer|publish|colab|cli|\w*hub)"
        assert not re.search(above, path.read_text(encoding="utf-8")), path.name
        if path.stem != "__init__":
            assert isinstance(getattr(report, path.stem), ModuleType), path.stem
