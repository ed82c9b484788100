"""A run trains, stops and resumes as the recipe and the run folder say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch._subclasses import FakeTensorMode

import s8lib as s8
from s8lib import trainer
from s8lib.data.batches import Batch, plan_epoch
from s8lib.data.cifar100 import holdout
from s8lib.machine.ranks import ALONE
from s8lib.metrics import predict_logits
from s8lib.models.weights import save_model
from s8lib.optimizer import make_optimizer
from s8lib.run.copies import Copies
from s8lib.trainer import loss_function
from tests.runs import MODEL, RECIPE, Cut, assert_same_bits, outcome, recipe, small_model, timeless, train


def first(split: s8.Split, n: int) -> s8.Split:
    return split.subset(torch.arange(n))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> dict[str, Path]:
    runs = {}
    for precision in ("fp32", "bf16"):
        runs[precision] = tmp_path_factory.mktemp(f"whole-{precision}")
        train(runs[precision], tiny, precision=precision)
    return runs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_cut_after_every_epoch_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, tiny: s8.Cifar100, uninterrupted: dict[str, Path], precision: str
) -> None:
    """At a restart of the rate, in mid-phase and where the phase changes; the weights it is given are replaced."""
    for epoch in range(1, 6):
        with pytest.raises(Cut):
            train(tmp_path, tiny, cut_after=epoch, precision=precision, model=small_model(seed=99 * (epoch > 1)))
    log = train(tmp_path, tiny, model=small_model(seed=99), precision=precision)
    assert [row.epoch for row in log] == [1, 2, 3, 4, 5, 6]
    assert_same_bits(outcome(tmp_path), outcome(uninterrupted[precision]))


def test_a_resumed_fp16_run_keeps_its_loss_scale(tmp_path: Path, tiny: s8.Cifar100) -> None:
    few = dataclasses.replace(tiny, train=first(tiny.train, 20), test=first(tiny.test, 10))  # fp16 crawls on a CPU
    short = recipe(epochs=2, phase1_epochs=1, batch_size=10)
    train(tmp_path / "whole", few, recipe=short, precision="fp16")
    with pytest.raises(Cut):
        train(tmp_path / "cut", few, cut_after=1, recipe=short, precision="fp16")
    train(tmp_path / "cut", few, model=small_model(seed=99), recipe=short, precision="fp16")
    assert outcome(tmp_path / "cut")["scaler"]["scale"] > 1
    assert_same_bits(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


def test_a_run_goes_on_in_another_precision_as_when_another_gpu_is_lent(tmp_path: Path, tiny: s8.Cifar100) -> None:
    few = dataclasses.replace(tiny, train=first(tiny.train, 20), test=first(tiny.test, 10))
    short = recipe(epochs=3, phase1_epochs=1, batch_size=10)
    for epoch, precision in ((1, "bf16"), (2, "fp16")):
        with pytest.raises(Cut):
            train(tmp_path, few, cut_after=epoch, recipe=short, precision=precision)
    assert len(train(tmp_path, few, recipe=short, precision="fp32")) == 3
    sessions = json.loads((tmp_path / "environment.json").read_text())
    assert [(s["from_epoch"], s["precision"]) for s in sessions] == [(1, "bf16"), (2, "fp16"), (3, "fp32")]


def test_a_damaged_newest_checkpoint_costs_one_epoch_and_changes_nothing(
    tmp_path: Path, tiny: s8.Cifar100, uninterrupted: dict[str, Path]
) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=5, precision="fp32")
    os.truncate(tmp_path / "checkpoints" / "epoch_005.pt", 1000)
    lines: list[str] = []
    train(tmp_path, tiny, precision="fp32", lines=lines)
    assert any("epoch_005.pt is damaged" in line for line in lines)
    assert_same_bits(outcome(tmp_path), outcome(uninterrupted["fp32"]))


def test_best_weights_of_a_lost_epoch_give_way_to_the_best_that_the_log_holds(
    tmp_path: Path, tiny: s8.Cifar100
) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=3)
    run = s8.RunFolder(tmp_path)
    third = run.resume()
    log, row = third.log, dataclasses.replace(third.log[-1], epoch=4, test_acc=99.0)
    run.claim()
    run.save(dataclasses.replace(third, log=[*third.log, row]), lambda folder: save_model(small_model(77), folder))
    os.truncate(tmp_path / "checkpoints" / "epoch_004.pt", 10)

    def say(line: str) -> None:
        if line.startswith("on cpu"):
            raise Cut

    with pytest.raises(Cut):
        s8.train(RECIPE, small_model(), tiny, tmp_path, device="cpu", say=say)
    assert run.best_weights() == (log.best.epoch, run.best)
    state = run.checkpoint(log.best.epoch)
    best = s8.load_model(tmp_path / "best").state_dict()
    assert state is not None
    assert all(torch.equal(best[name], tensor) for name, tensor in state.model.items())


def test_best_weights_that_nothing_is_known_of_any_more_are_nobodys(tmp_path: Path, tiny: s8.Cifar100) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=3)
    run = s8.RunFolder(tmp_path)
    third = run.resume()
    run.claim()
    rows = [dataclasses.replace(third.log[0], test_acc=90.0), *third.log[1:]]
    run.save(dataclasses.replace(third, log=s8.EpochLog(rows)))
    lost = s8.EpochLog([*rows, dataclasses.replace(third.log[-1], epoch=4, test_acc=99.0)])
    run.save(dataclasses.replace(third, log=lost), lambda folder: save_model(small_model(77), folder))
    for epoch in (1, 4):
        os.truncate(tmp_path / "checkpoints" / f"epoch_00{epoch}.pt", 10)
    lines: list[str] = []
    train(tmp_path, tiny, lines=lines)
    assert [line for line in lines if "no checkpoint of it is left: a better one replaces it" in line]
    with pytest.raises(s8.RunError, match="damaged or incomplete"):
        run.best_weights()


def test_a_finished_run_says_so_and_changes_nothing(tmp_path: Path, tiny: s8.Cifar100) -> None:
    short = recipe(epochs=1, phase1_epochs=1, cycle_epochs=1)
    log = train(tmp_path, tiny, recipe=short)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lines: list[str] = []
    again = train(tmp_path, tiny, recipe=short, lines=lines)
    assert "this run is finished" in lines[0]
    assert list(again) == list(log)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": recipe(lr_peak=0.2)}, "recipe lr_peak is 0.1 there and 0.2 here"),
        ({"recipe": recipe(seed=4, name="mine")}, "another run: recipe seed is 3 there and 4 here. Use"),
        ({"model": s8.build_model("wrn-10-2")}, "model name is 'wrn-10-1' there and 'wrn-10-2' here"),
        ({"data": s8.synthetic_cifar100(seed=1, train=200, test=100)}, "not on synthetic, seed 1"),
        ({"holdout": 100}, "data holdout is 0 there and 100 here"),
    ],
)
def test_a_folder_of_another_run_is_refused_with_what_differs(
    tmp_path: Path, tiny: s8.Cifar100, change: dict, named: str
) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=1)
    before = (tmp_path / "manifest.json").read_bytes(), (tmp_path / "epoch_log.csv").read_bytes()
    data = change.pop("data", tiny)
    with pytest.raises(s8.RunError) as refusal:
        train(tmp_path, data, **({"recipe": RECIPE} | change))
    assert named in str(refusal.value)
    assert before == ((tmp_path / "manifest.json").read_bytes(), (tmp_path / "epoch_log.csv").read_bytes())


def test_the_run_folder_holds_what_the_readme_promises(uninterrupted: dict[str, Path]) -> None:
    folder = uninterrupted["fp32"]
    assert {"recipe.json", "environment.json", "epoch_log.csv", "manifest.json", "checkpoints", "best"} <= {
        path.name for path in folder.iterdir()
    }
    assert sorted(path.name for path in (folder / "best").iterdir()) == ["config.json", "model.safetensors"]
    assert s8.Recipe.load(folder / "recipe.json") == dataclasses.replace(RECIPE, model=MODEL)
    session = json.loads((folder / "environment.json").read_text())[0]
    assert session["precision"] == "fp32"
    assert session["torch"] == torch.__version__
    log = s8.EpochLog.read(folder / "epoch_log.csv")
    assert [row.phase for row in log] == [1, 1, 1, 1, 2, 2]
    assert [row.augmentation for row in log] == ["full"] * 4 + ["reduced"] * 2


def test_the_log_holds_the_recipes_knobs_and_the_rate_of_the_last_step(
    uninterrupted: dict[str, Path],
) -> None:
    log = s8.RunFolder(uninterrupted["fp32"]).resume().log
    for row in log:
        knobs = RECIPE.at(row.epoch - 1)
        assert (row.dropout, row.mixup_alpha) == (knobs.dropout, knobs.mixup_alpha)
        assert row.lr == RECIPE.at(row.epoch - 1 + 3 / 4).lr  # 4 steps an epoch: the last begins at 3/4
        assert row.best_acc == max(earlier.test_acc for earlier in log[: row.epoch])


def test_a_run_whose_first_epoch_was_not_saved_leaves_the_model_as_it_was(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def stopped(*_: object) -> None:
        torch.nn.init.zeros_(model.fc.weight)
        raise KeyboardInterrupt

    monkeypatch.setattr("s8lib.trainer.train_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(None, tiny, model=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def full(*_: object) -> None:
        raise s8.RunFault("epoch 1 cannot be saved: the disk is full")

    monkeypatch.undo()
    monkeypatch.setattr(s8.RunFolder, "save", full)
    with pytest.raises(s8.RunFault, match="epoch 1 cannot be saved"):
        train(tmp_path, tiny, model=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_run_that_diverges_leaves_the_model_as_it_was(tmp_path: Path, tiny: s8.Cifar100) -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def diverge(log: s8.EpochLog) -> None:
        torch.nn.init.constant_(model.fc.weight, torch.nan)

    for epoch in (1, 2):  # from the start, then resumed
        with pytest.raises(s8.NonFiniteLoss, match=rf"the last good checkpoint is epoch {epoch} "):
            train(tmp_path, tiny, model=model, watch=diverge)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_best_weights_are_those_of_the_best_epoch(uninterrupted: dict[str, Path], tiny: s8.Cifar100) -> None:
    run = s8.RunFolder(uninterrupted["fp32"])
    log = run.resume().log
    assert run.best_weights() == (log.best.epoch, run.best)
    metrics = s8.evaluate(s8.load_model(run.best), tiny.test, precision="fp32")
    assert metrics.top1 == log.best.test_acc


def test_checkpoints_load_without_trusting_pickle(uninterrupted: dict[str, Path]) -> None:
    for path in (uninterrupted["bf16"] / "checkpoints").iterdir():
        torch.load(path, map_location="cpu", weights_only=True)


def test_training_leaves_the_callers_random_state_alone(tiny: s8.Cifar100) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(None, tiny, recipe=recipe(epochs=1, phase1_epochs=1, cycle_epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize("own", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_a_cpu_keeps_its_memory_from_the_start_of_training_unless_the_environment_has_a_say(own: dict) -> None:
    script = (
        "import resource, torch\n"
        "from s8lib.session import usual_settings\n"
        "def new_pages():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.empty(2**27, dtype=torch.uint8).fill_(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "with usual_settings(torch.device('cpu'), False):\n"
        "    print(min(new_pages() for _ in range(20)))\n"  # what is allocated in between may cut a block short
    )
    here = {"PYTHONPATH": str(Path(s8.__file__).parents[1])}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | here
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment | own)
    assert (int(done.stdout) > 20) == bool(own), "128 MiB are 64 huge pages, or 32,768 small ones"


def test_the_seed_decides_the_run(tiny: s8.Cifar100) -> None:
    short = recipe(epochs=1, phase1_epochs=1, cycle_epochs=1)
    first, second, other = (
        train(None, tiny, recipe=dataclasses.replace(short, seed=seed), precision="fp32") for seed in (1, 1, 2)
    )
    assert timeless(first[0]) == timeless(second[0])
    assert first[-1].train_loss != other[-1].train_loss


def test_a_loss_that_is_not_finite_stops_the_run_and_names_epoch_step_and_checkpoint(
    tmp_path: Path, tiny: s8.Cifar100
) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=2)
    run = s8.RunFolder(tmp_path)
    state = run.resume()
    state.model["fc.bias"][0] = 3e38
    run.claim()
    run.save(state)
    with pytest.raises(s8.NonFiniteLoss) as stop:
        train(tmp_path, tiny)
    assert "epoch 3, step 1; the last good checkpoint is epoch 2" in str(stop.value)
    assert s8.RunFolder(tmp_path).resume().epoch == 2


def test_a_huge_rate_diverges_into_an_error_not_into_a_saved_epoch(tmp_path: Path, tiny: s8.Cifar100) -> None:
    wild = recipe(lr_start=1000.0, lr_peak=1000.0)
    with pytest.raises(s8.NonFiniteLoss, match=r"epoch 1.*; no checkpoint was saved"):
        train(tmp_path, tiny, recipe=wild, precision="fp32")
    assert not s8.RunFolder(tmp_path).manifest().checkpoints


def test_an_epoch_whose_last_steps_ruin_the_weights_is_not_saved(tmp_path: Path, tiny: s8.Cifar100) -> None:
    class Ruined(s8.WideResNet):
        """Its output is finite while training and not in evaluation, as after a last step that explodes."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 if self.training else float("nan"))

    with pytest.raises(s8.NonFiniteLoss, match="test loss infinite or NaN; no checkpoint was saved"):
        train(tmp_path, tiny, model=Ruined(10, 1))
    assert s8.RunFolder(tmp_path).manifest().epoch == 0


def test_damaged_best_weights_come_back_from_the_checkpoint_of_their_epoch(
    tmp_path: Path, tiny: s8.Cifar100
) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=3)
    weights = tmp_path / "best" / "model.safetensors"
    whole = weights.read_bytes()
    os.truncate(weights, 100)

    def say(line: str) -> None:
        if line.startswith("on cpu"):
            raise Cut

    with pytest.raises(Cut):
        s8.train(RECIPE, small_model(), tiny, tmp_path, device="cpu", say=say)
    assert weights.read_bytes() == whole


def test_fp16_whose_first_step_overflows_starts_with_clean_momentum(tiny: s8.Cifar100) -> None:
    device = torch.device("cpu")
    model = small_model()
    optimizer = make_optimizer(RECIPE, model, device, "fp32")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    batch = plan_epoch(dataclasses.replace(RECIPE, batch_size=4), 0, 4, device).batch(0, ALONE)
    loss, _ = loss_function(model, tiny.train, device, "fp16")(batch)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    assert all(not entry["momentum_buffer"].any() for entry in optimizer.state.values())


class Overflowing(torch.amp.GradScaler):
    """Finds an infinite gradient in every step, as fp16 does in a run that it cannot hold."""

    def __init__(self, device: str, enabled: bool) -> None:
        super().__init__(device, init_scale=8.0)

    def update(self, new_scale: Any = None) -> None:
        for state in self._per_optimizer_states.values():
            for found in state["found_inf_per_device"].values():
                found.fill_(1)
        super().update(new_scale)


def test_a_collapsed_fp16_scale_stops_the_run_with_a_sentence(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", Overflowing)
    with pytest.raises(s8.RunFault, match=r"fp16 does not hold the gradients of epoch 1 .*no checkpoint.*bf16"):
        train(tmp_path, tiny, precision="fp32")
    assert s8.RunFolder(tmp_path).manifest().epoch == 0


def test_a_gpu_that_is_too_small_is_said_in_a_sentence(tmp_path: Path, tiny: s8.Cifar100) -> None:
    activations: list[weakref.ref[torch.Tensor]] = []

    class Large(s8.WideResNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            computed = x + 1
            activations.append(weakref.ref(computed))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")

    with pytest.raises(
        s8.RunFault, match=r"too small \(CUDA out of memory\); no checkpoint .* lower batch_size"
    ) as kept:
        train(tmp_path, tiny, model=Large(10, 1))
    assert kept.value.__cause__
    assert [ref() for ref in activations] == [None], (
        "a notebook keeps the error, and a smaller batch has to fit beside it"
    )


def test_images_per_s_leave_out_what_follows_a_save(tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s8lib.session.Writer.look", lambda self: time.sleep(0.5))
    (row,) = train(None, tiny, recipe=recipe(epochs=1, phase1_epochs=0, warmup_epochs=0))
    assert row.seconds > 2
    assert row.images_per_s > len(tiny.train) / 2


@pytest.mark.parametrize("taken", ["s8lib.trainer.make_optimizer", "s8lib.session.load_strictly"])
def test_a_gpu_that_somebody_else_fills_is_said_in_the_same_sentence_and_nothing_against_the_checkpoint(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB. GPU 0 has ...")

    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=1)
    monkeypatch.setattr(taken, fail)
    with pytest.raises(s8.RunFault, match=r"too small \(CUDA .*; the last good checkpoint is epoch 1"):
        train(tmp_path, tiny)


def test_holdout_images_choose_the_best_epoch_and_are_not_trained_on(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {name: Mock(wraps=getattr(trainer, name)) for name in ("loss_function", "evaluate")}
    for name, call in calls.items():
        monkeypatch.setattr(trainer, name, call)
    lines: list[str] = []
    log = train(tmp_path, tiny, recipe=recipe(epochs=2, phase1_epochs=1), holdout=100, lines=lines)
    assert log.best.selection_acc == log.best.holdout_acc == max(row.holdout_acc for row in log)
    rest, held = (split.sha256() for split in holdout(tiny.train, 100, RECIPE.seed))
    used = {name: [args[1].sha256() for args, _ in call.call_args_list] for name, call in calls.items()}
    assert used == {"loss_function": [rest], "evaluate": [tiny.test.sha256(), held] * 2}
    assert "100 training images" in lines[0]
    assert "held-out training images" in lines[1]
    assert "holdout_acc" in (tmp_path / "epoch_log.csv").read_text().splitlines()[0]


def test_every_report_says_that_best_was_chosen_on_test_and_shows_the_final_epoch(tiny: s8.Cifar100) -> None:
    lines: list[str] = []
    log = train(None, tiny, recipe=recipe(epochs=2, phase1_epochs=1), lines=lines)
    assert "the test set itself" in lines[1]
    assert f"final epoch 2: {log[-1].test_acc:.2f}%" in lines[-1]
    assert "chosen on the test set itself" in lines[-1]


def test_early_stopping_ends_a_run_that_no_longer_improves_and_it_stays_ended(
    tmp_path: Path, tiny: s8.Cifar100
) -> None:
    frozen = recipe(lr_start=0.0, lr_peak=1e-12, lr_floor=0.0, lr_final=0.0, phase1_epochs=1, patience=2, epochs=9)
    log = train(tmp_path, tiny, recipe=frozen, precision="fp32")
    assert len(log) < 9
    lines: list[str] = []
    assert len(train(tmp_path, tiny, recipe=frozen, precision="fp32", lines=lines)) == len(log)
    assert "this run is finished" in lines[0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "int8"}, s8.DeviceError, "precision 'int8' is unknown"),
        ({"compile": "maybe"}, s8.DeviceError, "compile 'maybe' is unknown"),
        ({"device": "cuda:99"}, s8.DeviceError, "cuda:99"),
        ({"device": "abacus"}, s8.DeviceError, "abacus"),
        ({"recipe": recipe(batch_size=201)}, s8.RecipeError, "there are only 200 .* --set batch_size=32"),
        ({"holdout": 200}, s8.DataError, "200"),
        ({"holdout": -1}, s8.DataError, "-1"),
        ({"sync_batchnorm": True}, s8.ModelError, "sync_batchnorm"),
        ({"model": s8.WideResNet(10, 1, num_classes=10)}, s8.ModelError, "10 classes"),
        ({"model": s8.build_model("resnet-11"), "recipe": recipe(image_size=8)}, s8.RecipeError, "below 12x12"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, tiny: s8.Cifar100, options: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(tmp_path / "run", tiny, **options)
    assert not (tmp_path / "run").exists()


def test_the_publisher_hears_of_every_epoch_after_it_is_saved(tmp_path: Path, tiny: s8.Cifar100) -> None:
    class Recorder(Copies):
        def __init__(self) -> None:
            self.heard: list[tuple[str, int]] = []

        def fetch(self, run: s8.RunFolder, newest: int, identity: Any) -> int:
            self.heard.append(("fetch", newest))
            return 0

        def claim(self, run: s8.RunFolder) -> None:
            self.heard.append(("claim", run.manifest().epoch))

        def after_save(self, run: s8.RunFolder) -> None:
            self.heard.append(("epoch", run.manifest().epoch))

        def finish(self, run: s8.RunFolder) -> bool:
            self.heard.append(("finish", run.manifest().epoch))
            return True

    recorder = Recorder()
    train(tmp_path, tiny, recipe=recipe(epochs=2, phase1_epochs=1), hub=recorder)
    assert recorder.heard == [("fetch", 0), ("claim", 0), ("epoch", 1), ("epoch", 2), ("finish", 2)]
    train(tmp_path, tiny, recipe=recipe(epochs=2, phase1_epochs=1), hub=recorder)
    assert recorder.heard[5:] == [("fetch", 2), ("finish", 2)]
    with pytest.raises(s8.RunError, match="name one as run="):
        train(None, tiny, hub=recorder)


def test_the_loss_falls_on_real_images(real: s8.Cifar100) -> None:
    few = dataclasses.replace(real, train=first(real.train, 1000), test=first(real.test, 500))
    fast = recipe(
        epochs=5, phase1_epochs=4, cycle_epochs=5, dropout=(0.0, 0.0), mixup_alpha=(0.0, 0.0), image_size=20,
        augmentation=("light", "light"), batch_size=25,
    )  # fmt: skip
    log = train(None, few, recipe=fast)
    losses = [row.train_loss for row in log]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 4.2, "far below ln(100) = 4.6, the loss of guessing"
    assert log[-1].test_acc > 4, "guessing is right once in a hundred"


@pytest.mark.parametrize("name", ["wrn-28-10", "resnet-42"])
def test_both_networks_step_and_checkpoint_by_the_seeds_recipe(
    tmp_path: Path, tiny: s8.Cifar100, name: str
) -> None:
    model = s8.build_model(name, seed=0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    step_recipe = dataclasses.replace(s8.SEED_100, batch_size=2)
    few = dataclasses.replace(
        tiny, train=tiny.train.subset(torch.arange(2)), test=tiny.test.subset(torch.arange(2))
    )
    one = dataclasses.replace(step_recipe.stretched(0.01), warmup_epochs=0)
    s8.train(one, model, few, tmp_path, device="cpu", say=lambda line: None)
    assert s8.RunFolder(tmp_path).manifest().epoch == 1
    assert all(not torch.equal(before[key], value) for key, value in model.named_parameters())


# Before the tests whose compiler fails: what torch remembers of that outlives them.
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_training_follows_eager_training(tmp_path: Path, tiny: s8.Cifar100) -> None:
    short = recipe(epochs=1, phase1_epochs=1, cycle_epochs=1, dropout=(0.0, 0.0))
    lines: list[str] = []
    eager, compiled = (
        train(tmp_path / compile, tiny, recipe=short, precision="fp32", compile=compile, lines=lines)
        for compile in ("off", "on")
    )
    assert not [line for line in lines if "torch.compile failed" in line]
    assert json.loads((tmp_path / "on" / "environment.json").read_text())[-1]["compile"] is True
    assert compiled[-1].train_loss == pytest.approx(eager[-1].train_loss, rel=1e-3)
    assert compiled[-1].test_loss == pytest.approx(eager[-1].test_loss, rel=2e-2)


def no_compiler(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Not in torch's configuration: what is patched there does not exist afterwards.
    patch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "no-such-compiler")
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # what was compiled before is not there


def no_cache(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))


def stand_in(*outcomes: Exception | None) -> Callable[[pytest.MonkeyPatch, Path], None]:
    """A compiler whose answer to each new piece of code is one of `outcomes`, in turn."""

    def replace(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        left = list(outcomes)

        def compile(step: Any, **options: Any) -> Any:
            def compiled(batch: Batch) -> Any:
                if key(batch) not in seen:
                    seen.add(key(batch))
                    if error := left.pop(0):
                        raise error
                return step(batch)

            seen: set[str] = set()
            return compiled

        def key(batch: Batch) -> str:
            return repr(batch.policy)

        patch.setattr(torch, "compile", compile)

    return replace


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (no_compiler, "no-such-compiler"),
        (no_cache, "Not a directory"),
        (stand_in(RuntimeError("ptxas crashed\nwith a long text")), "ptxas crashed with a long text)"),
        (stand_in(None, OSError(28, "No space left on device")), "No space left"),
    ],
    ids=["no C++ compiler", "unwritable cache", "phase 1", "phase 2"],
)
def test_a_compiler_that_fails_is_told_in_one_line_and_training_goes_on(
    tiny: s8.Cifar100,
    uninterrupted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[pytest.MonkeyPatch, Path], None],
    words: str,
) -> None:
    trouble(monkeypatch, tmp_path)
    torch._dynamo.reset()
    lines: list[str] = []
    train(tmp_path / "run", tiny, precision="fp32", compile="on", lines=lines)
    (failure,) = [index for index, line in enumerate(lines) if "torch.compile failed" in line]
    assert words in lines[failure]
    assert "\n" not in lines[failure]
    assert "a minute or two" in lines[failure - 1]
    assert failure < next(index for index, line in enumerate(lines) if line.startswith("epoch "))
    assert_same_bits(outcome(tmp_path / "run"), outcome(uninterrupted["fp32"]))


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [("resnet-11", "auto", "off"), ("resnet-11", "on", "on"), ("wrn-10-1", "auto", "auto")],
)
def test_resnet11_which_trains_sooner_than_it_compiles_is_compiled_where_that_is_asked_for(
    tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, name: str, asked: str, told: str
) -> None:
    pick = Mock(side_effect=Cut)
    monkeypatch.setattr(trainer, "pick_compile", pick)
    with pytest.raises(Cut):
        s8.train(RECIPE, s8.build_model(name), tiny, compile=asked)
    assert pick.call_args.args[1] == told


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-42", "resnet-11"])
def test_a_step_keeps_to_the_gpu_as_torch_tells_of_one_that_is_not_there(
    tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    device, base = torch.device("cuda", 0), s8.QUICK if name == "resnet-11" else s8.SEED_100
    schedule = dataclasses.replace(base, batch_size=8)
    plans = [plan_epoch(schedule, epoch, 16, torch.device("cpu")) for epoch in (0, schedule.epochs - 1)]
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes, types and devices alone; it fails where two meet
        train_set = tiny.train.to(device)
        with device:
            model = s8.build_model(name)
        optimizer = make_optimizer(schedule, model, device, "fp16")
        for group in optimizer.param_groups:
            group["fused"] = False  # torch has no such step for tensors without numbers
        loss_of = loss_function(model, train_set, device, "fp16")
        for plan in plans:
            moved = {part: getattr(plan, part).to(device) for part in ("order", "draws", "lam")}
            loss, hits = loss_of(dataclasses.replace(plan, **moved).batch(0, ALONE))
            assert (loss.device, hits.device) == (device, device)
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
        assert predict_logits(model, train_set.images, "fp16").device == device


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "precision", "compile"),
    [
        *itertools.product(["wrn-28-10", "resnet-42", "resnet-11"], ["bf16", "fp16", "fp32"], ["off"]),
        *(("wrn-28-10", "bf16", "on"), ("resnet-42", "fp16", "on"), ("resnet-11", "fp32", "on")),
    ],
)
def test_gpu_trains_a_step_without_waiting_for_the_device(
    tiny: s8.Cifar100, name: str, precision: str, compile: str
) -> None:
    device = torch.device("cuda")
    model = s8.build_model(name, seed=0).to(device, memory_format=torch.channels_last)
    loss_of = loss_function(model, tiny.train.to(device), device, precision)
    schedule = dataclasses.replace(s8.QUICK if name == "resnet-11" else s8.SEED_100, batch_size=64)
    loss_of = torch.compile(loss_of, dynamic=False) if compile == "on" else loss_of
    optimizer = make_optimizer(schedule, model, device, precision)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    plan = plan_epoch(schedule, 0, 200, device)
    looks = schedule.optimizer == "muon" and precision == "fp16"  # for infinities, before its step
    for index in range(3):
        torch.cuda.set_sync_debug_mode("error" if index == 2 and not looks else "default")
        try:
            loss, _ = loss_of(plan.batch(index, ALONE))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["off", "on"])
def test_gpu_resume_with_deterministic_equals_the_uninterrupted_run(
    tmp_path: Path, tiny: s8.Cifar100, compile: str
) -> None:
    options = {"device": "cuda", "deterministic": True, "precision": "bf16", "compile": compile}
    train(tmp_path / "whole", tiny, **options)
    with pytest.raises(Cut):
        train(tmp_path / "cut", tiny, cut_after=3, **options)
    train(tmp_path / "cut", tiny, model=small_model(seed=99), **options)
    assert_same_bits(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))


@pytest.mark.gpu
def test_a_gpu_checkpoint_goes_on_on_a_cpu(tmp_path: Path, tiny: s8.Cifar100) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=5, device="cuda", precision="fp16")
    assert len(train(tmp_path, tiny, device="cpu", precision="fp32")) == 6
