"""One's own pictures in the place of CIFAR-100: read, trained on, measured, predicted and named."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import s8lib as s8
from s8lib import cli, trainer
from s8lib.data.pictures import prepare
from s8lib.report import make_card
from tests.local_hub import client_of, serve
from tests.runs import MODEL, assert_same_bits, outcome

COLOURS = {"red fox": (200, 50, 50), "sea": (40, 60, 210), "$ grass": (60, 190, 60)}
NAMES = ("$ grass", "red fox", "sea")
TRAIN = ("--recipe", "quick", "--model", MODEL, "--epochs", "2", "--device", "cpu")
TRAIN += ("--set", "batch_size=12", "--set", "lr_peak=0.2")


def draw(folder: Path, count: int, names: tuple[str, ...] = NAMES) -> None:
    """`count` pictures of 70x50 pixels for each class, in three formats, with what lies beside pictures."""
    noise = np.random.default_rng(count)
    for name in names:
        (folder / name / "more").mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(noise.normal(0, 40, (50, 70, 3)) + COLOURS[name], 0, 255).astype(np.uint8)
            where = folder / name / "more" if number % 2 else folder / name
            Image.fromarray(pixels).save(where / f"{number:03d}{('.png', '.JPG', '.webp')[number % 3]}")
        (folder / name / "notes.txt").write_text("no picture")
        (folder / name / "._000.png").write_bytes(b"a Mac's")
        (folder / name / "x.gif").mkdir(exist_ok=True)
        (folder / name / ".thumbnails").mkdir()
        Image.new("RGB", (9, 9)).save(folder / name / ".thumbnails" / "small.png")
    (folder / ".ipynb_checkpoints").mkdir(exist_ok=True)
    (folder / "README.md").write_text("where they are from")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "field trip"
    draw(folder / "train", 24)
    draw(folder / "test", 8)
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `pictures`, by the command."""
    run = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(["train", "--data", str(pictures), "--run", str(run), *TRAIN]) == 0
    return run


def test_a_folder_is_a_class_and_a_picture_is_what_predict_sees(pictures: Path) -> None:
    data = s8.load_folder(pictures)
    assert data.classes == NAMES == data.superclasses
    assert (len(data.train), len(data.test)) == (72, 24)
    assert data.train.labels.bincount().tolist() == [24, 24, 24]
    assert torch.equal(data.test.labels, data.test.coarse_labels)
    files = sorted(str(file) for file in (pictures / "test").rglob("*") if re.fullmatch(r"\d+\..*", file.name))
    by_bytes = sorted(image.numpy().tobytes() for image in data.test.images)
    assert by_bytes == sorted(image.numpy().tobytes() for image in prepare(files))
    assert data.source == f"field trip, 3 classes in {pictures.parent}"
    assert s8.choose_data(pictures).fingerprint() == data.fingerprint()
    assert s8.run_name(s8.QUICK, data) == "quick-resnet-11-field-trip-seed0"


@pytest.mark.parametrize("name", ["birds in flight", "made in C, in 2026"])
def test_a_folder_of_any_name_names_run_and_card(tmp_path: Path, name: str) -> None:
    draw(tmp_path / name, 3)
    data = s8.choose_data(tmp_path / name)
    first = re.sub("[ ]", "-", name.partition(",")[0])
    assert s8.run_name(s8.QUICK, data) == f"quick-resnet-11-{first}-seed0"
    assert data.name.startswith(f"{name}, 3 classes")
    assert data.source == f"{data.name} in {tmp_path}"
    run = tmp_path / "run"
    recipe = s8.choose_recipe("quick", model=MODEL, epochs=1).with_settings({"batch_size": 3, "image_size": 8})
    s8.train(recipe, s8.build_model(MODEL, 3), data, run, device="cpu", say=str)
    assert s8.RunFolder(run).sessions()[-1]["data"] == data.name, "without the folder that it lies in"


def test_without_a_test_folder_a_sixth_of_each_class_is_held_back_by_seed(tmp_path: Path) -> None:
    draw(tmp_path / "pets", 13)
    for extra in range(6):
        Image.new("RGB", (9, 9), (extra, 0, 0)).save(tmp_path / "pets" / "sea" / f"more{extra}.bmp")
    data, again, other = (s8.load_folder(tmp_path / "pets", seed) for seed in (0, 0, 1))
    assert data.test.labels.bincount().tolist() == [2, 2, 3]
    assert data.train.labels.bincount().tolist() == [11, 11, 16]
    assert not {*map(bytes, data.train.images.numpy())} & {*map(bytes, data.test.images.numpy())}
    assert "a sixth of each held back as test images by seed 0" in data.source
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()


def spoil(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        draw(folder / "train", 2, NAMES[:2])
        draw(folder / "test", 1, NAMES[:2])
        change(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda at: (at / "train").rename(at / "somewhere"),
            "train should hold a folder of pictures for each of two",
        ),
        (lambda at: draw(at / "test", 1, ("sea",)), "test holds a class that .*train does not have: 'sea'"),
        (
            lambda at: (at / "train" / "sea").mkdir(),
            "sea holds no picture \\(they end in .jpg, .jpeg, .*: bring 1 or more",
        ),
        (lambda at: (at / "test" / "red fox" / "000.png").unlink(), "test/red fox holds no picture"),
        (lambda at: (at / "train" / "red fox" / "x.png").write_bytes(b"PNG"), "red fox/x.png' cannot be used: "),
        (lambda at: draw(at / "train" / "b\nd", 1, ("sea",)), r"holds a class named 'b\\nd'"),
    ],
)
def test_what_is_no_set_of_pictures_is_refused_in_a_sentence(
    change: Callable[[Path], object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoil(change)(tmp_path / "pets")
    assert cli.main(["train", "--device", "cpu", "--data", str(folder), "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_one_class_is_not_enough_and_no_folder_is_named(tmp_path: Path) -> None:
    draw(tmp_path, 3, NAMES[:1])
    for path in (tmp_path, tmp_path / "nowhere", "nul\0"):
        with pytest.raises(s8.DataError, match="should hold a folder of pictures for each of two or more classes"):
            s8.load_folder(path)
    draw(tmp_path / "flat" / "train", 2)
    (tmp_path / "flat" / "test").mkdir()
    with pytest.raises(s8.DataError, match="test should hold a folder of pictures for each class, as train/ does"):
        s8.load_folder(tmp_path / "flat")


def test_the_model_knows_its_classes_wherever_it_is_loaded(run: Path, pictures: Path) -> None:
    model = s8.load_model(run / "best")
    assert tuple(model.classes) == NAMES
    (guesses,) = s8.predict(model, pictures / "test" / "sea" / "000.png")
    assert guesses[0].name == "sea"
    assert {guess.name for guess in guesses} == {*NAMES}
    assert s8.build_model(MODEL).classes == s8.predict.__globals__["CLASSES"]


def test_weights_are_not_measured_on_as_many_classes_of_other_names(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path, 3)
    (tmp_path / "sea").rename(tmp_path / "lake")
    assert cli.main(["evaluate", "--model", str(run / "best"), "--data", str(tmp_path)]) == 2
    assert f"has other classes than {MODEL} knows, such as 'lake'" in capsys.readouterr().err


def test_evaluate_and_report_say_nothing_of_superclasses_or_a_hundred_classes(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "--run", str(run), "--data", str(pictures)]) == 0
    assert "superclass" not in capsys.readouterr().out
    assert cli.main(["report", "--run", str(run), "--data", str(pictures), "--no-video"]) == 0
    assert {"confusion.png", "worst_classes.png", "mistakes.png"} <= {path.name for path in run.iterdir()}
    counted = json.loads((run / "report.json").read_text())["model"]["parameters"]
    assert counted == sum(parameter.numel() for parameter in s8.load_model(run / "best").parameters())


def test_a_runs_own_pictures_are_taken_from_s8_data_too_and_missed_before_any_download(
    run: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("S8_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("S8_DATA", raising=False)
    for command, *options in (["train", *TRAIN], ["evaluate"], ["report", "--no-video"]):
        code = cli.main([command, "--run", str(run), *options])
        printed = capsys.readouterr()
        assert "was trained on field trip, 3 classes, not on" in printed.out + printed.err
        assert code == (0 if command == "report" else 2), "a report tells what it can without its pictures"
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("S8_DATA", str(pictures))
    s8.colab.checks()
    assert "data: pictures of your own, in the folder that S8_DATA names" in capsys.readouterr().out
    assert s8.data_of(s8.RunFolder(run)).fingerprint() == s8.load_folder(pictures).fingerprint()


def test_the_card_names_the_data_and_its_classes_and_claims_no_cifar_100(run: Path, pictures: Path) -> None:
    card = str(make_card(s8.RunFolder(run), "tester/pets"))
    assert "field trip, 3 classes" in card
    assert "**This is not a CIFAR-100 network.**" in card
    assert ", ".join(NAMES) in card
    assert "uoft-cs/cifar100" not in card
    assert str(pictures.parent) not in card


def test_other_pictures_than_the_runs_own_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "train", 3)
    assert cli.main(["evaluate", "--run", str(run), "--data", str(tmp_path)]) == 2
    assert "was trained on field trip, 3 classes, not on" in capsys.readouterr().err


def test_by_the_commands_own_pictures_are_trained_on_after_an_interruption_predicted_and_published(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, sea = str(tmp_path / "mine"), str(pictures / "test" / "sea" / "000.png")
    again = ["train", "--data", str(pictures), "--run", mine, *TRAIN]
    measure, measured = trainer.evaluate, []

    def interrupted(*arguments: Any, **options: Any) -> s8.Metrics:
        measured.append(measure(*arguments, **options))
        if len(measured) == 2:
            signal.raise_signal(signal.SIGINT)
        return measured[-1]

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        assert cli.main(again) == 130
    assert f"stopped; the last good checkpoint is epoch 1 in {mine}" in capsys.readouterr().out
    assert cli.main(again) == 0
    assert [line[:11] for line in capsys.readouterr().out.splitlines() if line[:5] == "epoch"] == ["epoch   2/2"]
    assert_same_bits(outcome(tmp_path / "mine"), outcome(run))

    assert cli.main(["predict", "--run", mine, sea]) == 0
    *_, guessed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*000\.png: sea \d+%(, (red fox|\$ grass) \d+%){2}", guessed)
    with serve() as hub, client_of(hub, tmp_path / "home"):
        assert cli.main(["publish", "--run", mine, "--hub-repo", "tester/pets"]) == 0
        assert cli.main(["predict", "--model", "tester/pets", sea]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == guessed
    card = hub.commits("tester/pets")[-1].files["README.md"].content.decode()
    assert (
        "**This is not a CIFAR-100 network.** It was trained and tested on other data (field trip, 3 classes)"
        in card
    )
    assert ", ".join(NAMES) in card
