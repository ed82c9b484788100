"""Recipe and data of someone who names none, and what is shown while they are trained on."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import s8lib as s8
from tests.runs import RECIPE, train


def test_auto_is_the_recipe_that_the_device_deserves() -> None:
    assert s8.choose_recipe(device="cpu") == s8.QUICK
    assert s8.choose_recipe("seed-200", device="cpu") == s8.SEED_200


def test_the_environment_can_name_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S8_DEVICE", "meta")
    with pytest.raises(s8.DeviceError, match="'meta'"):
        s8.choose_recipe()
    assert s8.choose_recipe(device="cpu") == s8.QUICK, "what is named here wins"


@pytest.mark.gpu
def test_auto_on_a_gpu_is_the_full_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S8_DEVICE")
    assert s8.choose_recipe() == s8.SEED_100


def test_model_seed_and_epochs_replace_the_recipes_own() -> None:
    chosen = s8.choose_recipe("seed-100", model="resnet-42", seed=7, epochs=50)
    assert (chosen.model, chosen.seed, chosen.epochs, chosen.phase1_epochs) == ("resnet-42", 7, 50, 30)
    with pytest.raises(s8.RecipeError, match="epochs = 0"):
        s8.choose_recipe("quick", epochs=0)
    with pytest.raises(s8.RecipeError, match="there is no recipe 'seed-300': use auto, seed-100, seed-200, quick"):
        s8.choose_recipe("seed-300")


def test_synthetic_is_a_word_for_the_stand_in_as_argument_and_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert s8.choose_data("synthetic").source.startswith("synthetic")
    monkeypatch.setenv("S8_DATA", "synthetic")
    data = s8.choose_data()
    assert data.source.startswith("synthetic")
    assert s8.run_name(s8.QUICK, data) == "quick-resnet-11-synthetic-seed0"


def test_a_folder_without_the_data_is_an_error_even_where_the_stand_in_may_take_the_place_of_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(s8.DataError, match=str(tmp_path)):
        s8.choose_data(tmp_path, may_stand_in=True)
    monkeypatch.setenv("S8_DATA", str(tmp_path))
    with pytest.raises(s8.DataError, match=str(tmp_path)):
        s8.choose_data(may_stand_in=True)


def test_damaged_files_in_the_cache_are_an_error_and_no_reason_for_the_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"cut")
    monkeypatch.delenv("S8_DATA", raising=False)
    monkeypatch.setenv("S8_CACHE", str(tmp_path))
    with pytest.raises(s8.DataError, match="train does not hold its part of CIFAR-100"):
        s8.choose_data(may_stand_in=True)


def test_watch_sees_the_log_after_every_epoch(tiny: s8.Cifar100) -> None:
    lengths: list[int] = []
    train(None, tiny, watch=lambda log: lengths.append(len(log)))
    assert lengths == list(range(1, RECIPE.epochs + 1))


def test_a_progress_bar_shows_on_a_terminal_and_nowhere_else() -> None:
    script = (
        "from s8lib.machine.progress import byte_bar, progress_bar\n"
        "for _ in progress_bar(range(3), 'epoch 1/9'): pass\n"
        "with byte_bar('sending') as bar: bar.total = 4_000_000; bar.update(3_000_000); bar.refresh()"
    )
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert piped.stdout + piped.stderr == ""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    os.set_blocking(master, False)
    subprocess.run([sys.executable, "-c", script], stdout=slave, stderr=slave, check=True)
    shown = os.read(master, 10_000)
    assert b"epoch 1/9: " in shown
    assert b"sending:  75%" in shown
    assert b"3.00M/4.00M" in shown
    os.close(slave)
    os.close(master)
