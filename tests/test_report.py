"""What a run looks like: each picture, table and film shows what the run left."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import s8lib as s8
from s8lib import cli, report
from tests.runs import RECIPE, small_model, train

# imageio-ffmpeg leaves closing its pipes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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
    assert "best: 90.25% in epoch 97" in texts(figure)
    assert "last: 80.00% in epoch 100" in texts(figure)
    assert "target 74%" in texts(figure)
    assert "not comparable with test" in texts(figure)
    assert "the test set itself" in texts(figure)


def test_every_axis_says_what_it_shows_and_in_which_unit() -> None:
    assert list(axes_of(report.curves(made_up_log(s8.QUICK), s8.QUICK))) == [
        "accuracy (%)", "loss (nats)", "learning rate",
    ]  # fmt: skip
    knobs = list(axes_of(report.schedule(s8.SEED_100)))
    assert knobs == ["learning rate", "dropout", "MixUp α", "label\nsmoothing", "augmentation"]
    assert list(axes_of(report.schedule(s8.QUICK)))[-1] == "image side\n(pixels)"


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


def test_the_summary_prints_the_seeds_totals_and_disturbs_nothing() -> None:
    model = s8.build_model("resnet-42", seed=0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noise = torch.get_rng_state()
    text = report.summary(model)
    for line in (
        "Total params: 30,032,292",
        "Trainable params: 30,032,292",
        "Non-trainable params: 0",
        "Forward/backward pass size (MB): 35.20",
        "Params size (MB): 114.56",
        "Estimated Total Size (MB): 149.77",
    ):
        assert line in text
    assert torch.equal(noise, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_epoch_table_has_a_line_an_epoch_and_stars_the_best() -> None:
    lines = report.epoch_table(made_up_log(s8.SEED_100, best=97)).splitlines()
    assert len(lines) == 101
    assert [line.split()[0] for line in lines if "*" in line] == ["97*"]
    assert report.epoch_table(made_up_log(s8.SEED_100), last=5).splitlines()[1].startswith("   96")
    assert max(map(len, lines)) <= 115


def test_the_overview_names_network_recipe_epochs_best_final_and_sizes(run: s8.RunFolder) -> None:
    log, best = s8.EpochLog.read(run.path / "epoch_log.csv"), run.manifest()["best"]
    rows = {line[:12].strip(): line[12:] for line in report.overview(run).splitlines()}
    assert (
        rows["network"] == f"wrn-10-1, {sum(tensor.numel() for tensor in small_model().parameters()):,} parameters"
    )
    assert rows["epochs"].startswith("6 of 6, in ")
    scores = "epoch {0.epoch}: {0.test_acc:.2f}% top-1, {0.test_top5:.2f}% top-5 on the test set"
    assert rows["best"] == scores.format(log.best)
    assert rows["chosen on"] == "the test set itself, which flatters it"
    assert rows["final"] == scores.format(log[-1])
    assert rows["weights"].startswith(
        f"of epoch {best['epoch']}, {best['bytes'] / 1e3:.1f} kB, sha256 {best['sha256'][:9]}"
    )
    assert rows["checkpoint"].startswith("of epoch 6, ")


def test_a_report_holds_every_file_and_the_runs_own_numbers(
    run: s8.RunFolder, written: dict[str, Path], tiny: s8.Cifar100
) -> None:
    pictures = ("graph.jpg", "schedule.png", "samples.png", "param_1.png", "param_2.png", "confusion.png")
    pictures += ("worst_classes.png", "mistakes.png", "reliability.png")
    assert written.keys() == {*pictures, "report.json", "epoch_log.mov"}
    for name in pictures:
        with Image.open(written[name]) as image:
            assert image.format == ("JPEG" if name.endswith("jpg") else "PNG")
            assert image.width >= 1200
    log = s8.EpochLog.read(run.path / "epoch_log.csv")
    numbers = json.loads(written["report.json"].read_text())
    assert numbers["final"] == dataclasses.asdict(log[-1])
    assert numbers["best"] == dataclasses.asdict(log.best)
    assert numbers["best_chosen_on"] == "the test set itself, which flatters it"
    assert s8.Recipe.from_dict(numbers["recipe"]) == dataclasses.replace(RECIPE, model="wrn-10-1")
    assert numbers["model"] == {
        "name": "wrn-10-1",
        "parameters": sum(p.numel() for p in small_model().parameters()),
    }
    assert numbers["minutes"] == pytest.approx(sum(row.seconds for row in log) / 60)
    measured = numbers["best_measured_again"]
    assert measured["n"] == len(tiny.test)
    assert measured["top1"] == pytest.approx(log.best.test_acc)
    assert measured["per_class"].keys() == set(tiny.classes)
    assert str(run.path) not in written["report.json"].read_text()


def test_the_contents_name_every_file_of_the_report(run: s8.RunFolder, written: dict[str, Path]) -> None:
    listing = report.contents(run)
    for name in (*written, "epoch_log.csv", "recipe.json", "best", "epoch_006.pt"):
        assert f"{name} " in listing
    assert "epoch_001.pt" not in listing


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
    with pytest.raises(s8.RunError, match="holds no finished epoch: train there first"):
        report.write(tmp_path)
    assert cli.main(["report", "--run", str(tmp_path)]) == 2
    assert "holds no finished epoch" in capsys.readouterr().err


def test_live_curves_draw_nothing_outside_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s8lib.report.live.curves", lambda *_: pytest.fail("drawn"))
    report.LiveCurves(s8.QUICK)(made_up_log(s8.QUICK))


def test_a_run_is_not_measured_on_data_it_was_not_trained_on(
    run: s8.RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = s8.synthetic_cifar100(seed=1, train=200, test=100)
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    with pytest.raises(s8.RunError, match="was trained on other data than synthetic, seed 1"):
        report.write(run, other)
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before
    monkeypatch.setattr(s8, "load_cifar100", lambda download: other)
    assert cli.main(["report", "--run", str(run.path), "--no-video", "--device", "cpu"]) == 0
    assert "trained on other data than synthetic, seed 1" in capsys.readouterr().out


def test_without_being_told_the_command_takes_the_runs_own_data_where_it_is_at_hand(
    run: s8.RunFolder, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s8, "load_cifar100", lambda download: tiny)
    (run.path / "report.json").unlink(missing_ok=True)
    assert cli.main(["report", "--run", str(run.path), "--no-video", "--device", "cpu"]) == 0
    assert json.loads((run.path / "report.json").read_text())["best_measured_again"]["n"] == len(tiny.test)


def test_a_damaged_log_is_refused_in_one_sentence(
    run: s8.RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(run.path, tmp_path / "run"))
    (damaged / "epoch_log.csv").write_text("epoch,phase\n1,1\n")
    assert cli.main(["report", "--run", str(damaged)]) == 2
    assert "epoch_log.csv is not an epoch log" in capsys.readouterr().err


def test_the_two_images_of_the_network_hold_every_layer_once_and_the_totals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    module = sys.modules["s8lib.report.architecture"]  # the function of that name hides it from monkeypatch
    monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(figure) or path)
    report.architecture(s8.build_model("resnet-42"), tmp_path)
    first, second = ([text.get_text() for text in figure.axes[0].texts] for figure in drawn)
    both = first + second
    sums = [both[i + 2] for i, text in enumerate(both) if re.fullmatch(r"stem|head|layer\d\.\d", text)]
    assert len(sums) == 1 + 20 + 1
    assert sum(int(count.replace(",", "")) for count in sums) == 30_032_292
    assert min(int(count.replace(",", "")) for count in sums) == 1_856, "the stem's"
    layers = [text.strip() for text in both if re.fullmatch(r" *\w+-\d+", text)]
    assert [int(layer.split("-")[1]) for layer in layers] == list(range(1, 153))
    assert "Estimated Total Size (MB): 149.77" in second
    assert not any(text.startswith("Estimated") for text in first)


def test_what_is_written_in_mid_training_draws_no_random_numbers(run: s8.RunFolder) -> None:
    noise = torch.get_rng_state()
    report.write_log(run, s8.EpochLog.read(run.path / "epoch_log.csv"))
    assert torch.equal(noise, torch.get_rng_state())


def test_the_learning_rate_ends_where_training_does_and_not_in_the_next_cycle() -> None:
    recipe = s8.QUICK.stretched(1 / 9)
    line = axes_of(report.schedule(recipe))["learning rate"].lines[0]
    assert line.get_ydata()[-1] < 1e-3
    assert line.get_xdata()[-1] == pytest.approx(1)


def test_the_report_never_imports_the_trainer() -> None:
    for path in Path(report.__file__).parent.glob("*.py"):
        assert "trainer" not in path.read_text(encoding="utf-8"), path.name
