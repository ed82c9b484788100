"""What a run looks like: each picture, table and film shows what the run left."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import imageio_ffmpeg
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
    assert "best: 90.25% in epoch 97, last: 80.00% in epoch 100" in texts(figure)
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


@pytest.mark.parametrize("epochs", [1, 70])
def test_the_video_plays_in_quicktime_and_browsers_and_lasts_a_minute_at_most(tmp_path: Path, epochs: int) -> None:
    recipe = s8.SEED_100.stretched(epochs / 100)
    path = report.video(made_up_log(recipe), recipe, tmp_path / "epoch_log.mov")
    frames = imageio_ffmpeg.read_frames(path)
    found = next(frames)
    assert found["codec"] == "h264"
    assert found["pix_fmt"].startswith("yuv420p")
    assert found["size"] == (1280, 720)
    assert found["duration"] <= 60
    picture = np.frombuffer(next(frames), np.uint8).reshape(720, 1280, 3)
    frames.close()
    assert 150 < picture.mean() < 255
    assert picture.std() > 10, "something is drawn"
    content = path.read_bytes()
    assert content[4:12] == b"ftypqt  "
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes first, so that browsers can stream"
    assert b"avc1" in content
    assert len(content) < 3_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["epoch_log.mov"]


def test_the_last_frame_of_the_video_shows_more_than_the_first(tmp_path: Path) -> None:
    path = report.video(made_up_log(s8.QUICK), s8.QUICK, tmp_path / "epoch_log.mov")
    frames = imageio_ffmpeg.read_frames(path)
    next(frames)
    pictures = [np.frombuffer(frame, np.uint8).reshape(720, 1280, 3) for frame in frames]
    assert len(pictures) == 9 * 25 + 4 * 25
    plots = [picture[80:330, 60:770].astype(int) for picture in pictures]
    blue = [(plot[..., 2] - plot[..., 0] > 120).sum() for plot in plots]
    assert blue[0] < blue[100] < blue[-1]


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
