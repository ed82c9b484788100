"""The benchmarks measure what they say, and a real run gets to its artifacts through any cut."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import s8lib as s8
from benchmarks import checkout, measure, performance, real_runs, speed
from benchmarks.plain_loop import PlainLoop
from benchmarks.trainer_loop import TrainerLoop
from s8lib.machine import device as hardware
from s8lib.run.checkpoint import COLUMNS
from tests.runs import recipe

ROOT = Path(s8.__file__).parents[1]
CPU = torch.device("cpu")
GUIDE = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def python(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# --- figures ---


@pytest.mark.parametrize(("model", "gflop"), [("wrn-28-10", 31.46), ("resnet-42", 8.77)])
def test_training_flops_are_those_of_the_network(model: str, gflop: float) -> None:
    assert performance.training_flops(model) / 1e9 == pytest.approx(gflop, abs=0.005)
    assert performance.training_flops(model, 24) / performance.training_flops(model) == pytest.approx(
        24**2 / 32**2, rel=1e-3
    )


def test_speed_of_a_run_is_all_images_over_all_seconds_and_mfu_counts_the_smaller_images() -> None:
    two = recipe(epochs=2, phase1_epochs=1, image_size=(24, 32), batch_size=100, cycle_epochs=1)
    rows = [epoch(1, images_per_s=200.0, seconds=7.0), epoch(2, images_per_s=100.0, seconds=13.0)]
    speed = performance.speed_of(s8.EpochLog(rows), two, images=1050, flops_per_second=1e12)
    assert speed["images_per_s"] == pytest.approx(2000 / 15), "1000 images at 200/s, then 1000 at 100/s"
    assert speed["images_per_s_with_evaluation"] == pytest.approx(2000 / 20)
    flops = 1000 * (performance.training_flops(two.model, 24) + performance.training_flops(two.model))
    assert speed["mfu_percent"] == pytest.approx(100 * flops / 15 / 1e12)


def epoch(number: int, **fields: Any) -> s8.Epoch:
    values = dict.fromkeys(COLUMNS, 0.0) | {"epoch": number, "phase": 1, "augmentation": "none"}
    return s8.Epoch(**(values | fields))


def test_expected_minutes_in_the_guide_follow_from_its_assumptions() -> None:
    rate = 0.40 * 989e12
    line = r"^\| `(seed-\d+)`, (\S+) \| ([\d.]+) \| ([\d,]+) \| .*: (\d+) s \| .*: (\d+) s \| ([\d.]+) \|$"
    rows = re.findall(line, GUIDE, re.MULTILINE)
    assert len(rows) == 3
    for name, model, gflop, rated, training, evaluation, minutes in rows:
        flops, preset = performance.training_flops(model), s8.PRESETS[name]
        train_seconds = preset.epochs * (50_000 // preset.batch_size * preset.batch_size) * flops / rate
        test_seconds = preset.epochs * 10_000 * flops / 3 / rate
        assert (float(gflop), int(rated.replace(",", ""))) == (round(flops / 1e9, 2), round(rate / flops))
        assert (int(training), int(evaluation)) == (round(train_seconds), round(test_seconds))
        assert float(minutes) == round((train_seconds + test_seconds) / 60, 1)


def test_the_environment_names_the_driver_that_nvidia_smi_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware._nvidia_driver() is None
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$1" = --query-gpu=driver_version ] && echo 580.1 && echo 580.1\n')
    program.chmod(0o755)
    assert hardware._nvidia_driver() == "580.1"


# --- speed ---


def test_a_variant_is_measured_in_a_process_of_its_own_and_tells_what_made_it_fail() -> None:
    small = {"what": "step", "model": "wrn-10-1", "batch_size": 4, "steps": 1}
    assert speed.measure(small, "cpu")["value"] > 0
    assert re.search(r"6n ?\+ ?4", speed.measure(small | {"model": "wrn-11-1"}, "cpu")["error"])


def test_every_variant_takes_its_turn_in_every_round_and_one_that_fails_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(variant: dict[str, Any], device: str) -> dict[str, Any]:
        taken.append(variant.get("loop", "scaled"))
        return {"error": "no such network"} if taken[-1] == "none" else {"value": 2.0, "memory_gib": 1.0}

    taken: list[str] = []
    few = {name: {"loop": name} for name in ("plain", "none", "s8lib")}
    monkeypatch.setattr(speed, "measure", measured)
    monkeypatch.setattr(speed, "rows", lambda on_gpu: {"a step": few})
    monkeypatch.setattr(speed, "SCALING", {"batch": {"batch_size": [4]}})
    monkeypatch.setattr(speed, "matrix_rate", lambda device: ("fp32", 1e11))
    arguments = ["--rounds", "2", "--scaling", "--device", "cpu", "--json", str(tmp_path / "t.json")]
    assert speed.main(arguments) == 0
    assert taken == ["plain", "none", "s8lib", "plain", "s8lib", "scaled"]
    row = json.loads((tmp_path / "t.json").read_text())["rows"]["a step"]
    assert [len(samples) for samples in row.values()] == [2, 1, 2]
    table = capsys.readouterr().out
    assert "| a step | none | no such network | - | - |" in table
    assert "| a step | s8lib | 2 (2 to 2) | 1 (1 to 1) | 1.00 GiB |" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.png"]


@pytest.mark.parametrize(
    "told",
    [
        {"what": "step", "loop": "plain", "workers": 0, "batch_size": 4, "steps": 1},
        {"what": "evaluation"},
        {"what": "augmentation"},
        {"what": "save"},
        {"what": "save", "loop": "plain"},
        {"what": "epoch", "batch_size": 5},
    ],
)
def test_every_measure_measures(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    few = measure.Setting(**{"model": "wrn-10-1", **told})
    few.images = 20
    assert measure.MEASURES[few.what](few) > 0


def test_ratios_compare_neighbours_in_time_with_the_faster_plain_loop() -> None:
    values = {"plain, 0 workers": (1.0, 9.0, 1.0), "plain, 2 workers": (2.0, 4.0, 8.0), "s8lib": (4.0, 8.0, 4.0)}
    row = {name: [{"value": value} for value in found] for name, found in values.items()}
    assert speed.ratios(row)["s8lib"] == [2.0, 2.0, 0.5]


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_sees_the_layout_that_the_row_names(tiny: s8.Cifar100, channels_last: bool) -> None:
    loop = TrainerLoop(recipe(batch_size=8, model="wrn-10-1"), tiny.train, 1, CPU, "fp32", channels_last, False)
    seen = []
    model = loop.model
    model.conv1.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    loop.images_per_s()
    for images in seen[0]:
        assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert model.fc.weight.grad is None, "a whole step was made, and its gradients dropped"


def test_the_plain_loop_trains_on_normalised_images_of_the_usual_transforms(tiny: s8.Cifar100) -> None:
    loop = PlainLoop(recipe(batch_size=8, model="wrn-10-1"), tiny.train, 1, CPU, "fp32")
    before = loop.model.fc.weight.detach().clone()
    assert loop.images_per_s() > 0
    assert not torch.equal(before, loop.model.fc.weight)
    images = torch.stack([loop.loader.dataset[index][0] for index in range(24)])
    assert images.shape == (24, 3, 32, 32)
    assert -2.5 < images.min() < -0.5 < 0.5 < images.max() < 2.5


# --- real runs ---


def test_the_commit_is_the_checkouts_and_tells_code_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert checkout.commit_of_checkout() is None, "a copy without git"
    (tmp_path / "s8lib").mkdir()
    (tmp_path / "s8lib" / "code.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for arguments in ("init -q", "add .", "commit -qm first"):
        subprocess.run([*git, *arguments.split()], check=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "report.json").touch()
    commit = checkout.commit_of_checkout()
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{40}", commit), "results that are new do not make the code another"
    (tmp_path / "s8lib" / "code.py").write_text("1")
    assert checkout.commit_of_checkout() == f"{commit}-dirty"


def test_a_real_run_killed_in_mid_run_goes_on_to_the_artifacts_of_a_result(tmp_path: Path) -> None:
    out = tmp_path / "results" / "quick-cpu" / "seed-1"
    command = ["-m", "benchmarks.real_runs", *shlex.split("train quick wrn-10-1 --seed 1 --epochs 2 --device cpu")]
    command += ["--data", "synthetic", "--work", str(tmp_path / "runs"), "--out", str(out)]
    process = python(*command)
    while not (out / "environment.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(s8.EpochLog.read(out / "epoch_log.csv")) == 1, "the log so far is with the artifacts already"

    process = python(*command)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    names = {path.name for path in out.iterdir()}
    assert names >= {"epoch_log.csv", "recipe.json", "environment.json", "report.json", "graph.jpg"}
    if importlib.util.find_spec("imageio_ffmpeg"):
        assert (out / "epoch_log.mov").stat().st_size < 3 * 2**20
    else:
        assert "benchmarks.real_runs finish" in output
    log, report = s8.EpochLog.read(out / "epoch_log.csv"), json.loads((out / "report.json").read_text())
    assert [session["from_epoch"] for session in report["sessions"]] == [1, 2]
    for which, row in (("final", log[-1]), ("best", log.best)):
        assert report[which]["epoch"] == row.epoch
        assert report[f"{which}_measured_again"]["top1"] == pytest.approx(row.test_acc, abs=0.3)
    assert 0 <= report["final_measured_again"]["ece"] <= 100
    performance_ = report["performance"]
    assert performance_["minutes"] > sum(row.seconds for row in log) / 60
    assert performance_["images_per_s"] > performance_["images_per_s_with_evaluation"] > 0
    assert performance_["peak_memory_gib"] > 0.1
    assert 0 < performance_["mfu_percent"] < 100
    assert report["command"] == (
        "python -m benchmarks.real_runs train quick wrn-10-1 --seed 1 --data synthetic --epochs 2"
    )
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), f"{path.name} names a folder of this machine"


def test_what_is_no_result_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_runs.main(["finish", str(tmp_path)]) == 2
    assert "name a folder that `train` made" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
