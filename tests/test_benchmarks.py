"""The benchmarks measure what they say, and a real run gets to its artifacts through any cut."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import s8lib as s8
from benchmarks import checkout, measure, performance, real_runs, speed
from benchmarks.plain_loop import PlainLoop
from benchmarks.trainer_loop import TrainerLoop
from s8lib.data.batches import Batch
from s8lib.machine import device as hardware
from s8lib.recipe import POLICIES, Policy
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


def test_images_per_s_seconds_of_quick_and_the_size_of_the_all_reduce_in_the_guide_are_computed() -> None:
    quick, steps = s8.QUICK, 50_000 // s8.QUICK.batch_size
    sizes = [quick.at(epoch).image_size for epoch in range(quick.epochs)]
    assert f"{steps} x {quick.batch_size} images in each of {sizes.count(24)}\nepochs at 24x24" in GUIDE
    assert f"{sizes.count(32)} at 32x32 pixels" in GUIDE
    work = [steps * quick.batch_size * performance.training_flops(quick.model, size) for size in sizes]
    flops = sum(work) + quick.epochs * 10_000 * performance.training_flops(quick.model) / 3
    rates = {}
    for gpu, tflops, images, seconds in re.findall(r"^\| (\w+) \| (\d+) \| ([\d,]+) \| ([\d.]+) \|$", GUIDE, re.M):
        rates[gpu] = 0.4 * int(tflops) * 1e12 / performance.training_flops("wrn-28-10")
        assert int(images.replace(",", "")) == round(rates[gpu])
        assert float(seconds) == round(flops / (0.4 * int(tflops) * 1e12), 1)
    assert rates.keys() == {"T4", "A100", "H100"}
    with torch.device("meta"):
        megabytes = sum(parameter.nbytes for parameter in s8.build_model("wrn-28-10").parameters()) / 1e6
    rows = re.findall(r"^\| (\d) x (\w+) \| .*: ([\d.]+) \| ([\d.]+) \| (\d+) \|$", GUIDE, re.M)
    assert len(rows) == 4
    for ranks, gpu, link, milliseconds, images in rows:
        seconds = 2 * (int(ranks) - 1) / int(ranks) * megabytes / 1000 / (float(link) / 2)
        assert float(milliseconds) == round(1000 * seconds, 1)
        assert int(images) == round(seconds * 1.5 * rates[gpu])


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
        {"what": "compiling", "batch_size": 2},
    ],
)
def test_every_measure_measures(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    few = measure.Setting(**{"model": "wrn-10-1", **told})
    few.images = 20
    assert measure.MEASURES[few.what](few) > 0


def test_the_compiler_is_timed_for_the_code_of_both_phases_and_fails_aloud(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compile(step: Callable[[Batch], Any], **options: Any) -> Callable[[Batch], Any]:
        def compiled(batch: Batch) -> Any:
            if len(seen) == 3:
                raise OSError("no compiler here")
            seen.append(batch.policy)
            return step(batch)

        return compiled

    seen: list[Policy] = []
    monkeypatch.setattr(torch, "compile", compile)
    for phases in (1, 2):
        measure.compiling(measure.Setting("compiling", "wrn-10-1", batch_size=2, phases=phases))
    assert seen == [POLICIES["full"], POLICIES["full"], POLICIES["reduced"]]
    with pytest.raises(RuntimeError, match="no compiler here"):
        measure.compiling(measure.Setting("compiling", "wrn-10-1", batch_size=2))


def test_the_time_to_the_first_step_holds_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*given: Any) -> None:
        steps.append(given)
        return whole(*given)

    steps: list[Any] = []
    whole = torch.amp.GradScaler.step
    monkeypatch.setattr(torch.amp.GradScaler, "step", step)
    measure.begin(measure.Setting("begin", "wrn-10-1", batch_size=5, steps=4, folder=str(tmp_path)))
    assert len(steps) == 1
    measure.begin(measure.Setting("begin", "wrn-10-1", batch_size=5, steps=4, folder=str(tmp_path), resume=True))
    assert s8.RunFolder(tmp_path).manifest().epoch == 1


def test_each_trick_for_a_cpu_is_left_out_in_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Any, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
        environments.append(env.get("OMP_WAIT_POLICY"))
        return subprocess.CompletedProcess(command, 0, '{"value": 1}')

    def torchs(dropout: nn.Dropout, x: Tensor) -> Tensor:
        drawn.append(x)
        return x

    drawn: list[Tensor] = []
    kept: list[torch.device] = []
    environments: list[str | None] = []
    monkeypatch.setattr(measure, "keep_memory", kept.append)
    monkeypatch.setitem(measure.MASKS, "torch", torchs)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for title in ("step of wrn-16-2, batch 128", "step of wrn-16-2 beside a busy process"):
        row = speed.rows(on_gpu=False)[title]
        ours = {name: told for name, told in row.items() if name.startswith("s8lib")}
        assert [told.get("without") for told in ours.values()] == [None, "masks", "memory", "threads"]
        found = {}
        for name, told in ours.items():
            for seen in (drawn, kept, environments):
                seen.clear()
            speed.measure(told, "cpu")
            few = told | {"model": "wrn-10-1", "batch_size": 4, "steps": 1, "busy": 0}
            measure.step(measure.Setting(**few))
            found[name] = not drawn, bool(kept), environments == ["PASSIVE"]
        assert list(found.values()) == [
            (True, True, True), (False, True, True), (True, False, True), (True, True, False),
        ]  # fmt: skip
        assert speed.measure(row["plain, 2 workers"], "cpu")
        assert environments[-1] is None


def test_the_test_images_are_drawn_before_the_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**sizes: int) -> None:
        raise AssertionError("drawn while the clock runs")

    def seconds(told: measure.Setting, do: Callable[[], object]) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s8, "synthetic_cifar100", late)
            return whole(told, do)

    whole = measure.Setting.seconds
    monkeypatch.setattr(measure.Setting, "seconds", seconds)
    for what in ("evaluation", "epoch"):
        few = measure.Setting(what, "wrn-10-1", loop="plain", batch_size=4, workers=0)
        few.images = 20
        assert measure.MEASURES[what](few) > 0


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
    drops = [type(module) for module in loop.model.modules() if isinstance(module, nn.Dropout)]
    assert drops == [nn.Dropout] * 3, "as others draw their masks"
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

    assert real_runs.main(command[2:]) == 0
    names = {path.name for path in out.iterdir()}
    assert names >= {"epoch_log.csv", "recipe.json", "environment.json", "report.json", "graph.jpg"}
    assert (out / "epoch_log.mov").stat().st_size < 3 * 2**20
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
