"""Several ranks train as one: MixUp pairs the same images; a notebook that starts them is told and given all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from torch import Tensor, nn

import s8lib as s8
from s8lib.data.batches import plan_epoch
from s8lib.launch import RANKS, ranks_to_start, train_on
from s8lib.machine.device import pick_device
from s8lib.machine.ranks import ALONE, Ranks
from s8lib.run.copies import Copies
from s8lib.run.drive import DriveFolder
from s8lib.trainer import loss_function
from tests.hub_runs import until
from tests.runs import Cut, assert_same_bits, outcome, recipe, small_model, timeless, train

EPOCHS = 20  # so that an interrupt after the first comes long before the end
SHORT = {"epochs": EPOCHS, "phase1_epochs": 2, "cycle_epochs": 1, "image_size": 8, "batch_size": 48}
SECRET = "hf_test"


@pytest.mark.parametrize("world", [2, 5])
def test_an_image_is_mixed_with_the_same_one_for_any_number_of_ranks(tiny: s8.Cifar100, world: int) -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.flatten(1)[:, :100]

    plan = plan_epoch(recipe(), 0, len(tiny.train), torch.device("cpu"))
    loss_of = loss_function(Network(), tiny.train, torch.device("cpu"), "fp32")
    for step in range(plan.steps):
        seen: list[Tensor] = []
        loss, hits = loss_of(plan.batch(step, ALONE))
        shares = [loss_of(plan.batch(step, Ranks(rank, world))) for rank in range(world)]
        assert torch.equal(torch.cat(seen[1:]), seen[0])
        torch.testing.assert_close(torch.stack([share[0] for share in shares]).mean(), loss)
        torch.testing.assert_close(torch.stack([share[1] for share in shares]).sum(), hits)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> Path:
    """A run of three ranks that this process starts, with what it is told and given back.

    Not of two: the sum of two gradients is the same in whichever order they are added.
    """
    folder, model, shown = tmp_path_factory.mktemp("uninterrupted"), small_model(), []
    copies, lines = Copies(DriveFolder(folder / "drive")), []
    copies.token = SECRET  # type: ignore[attr-defined]
    run = s8.RunFolder(folder / "run", lines.append, copies=[copies])

    def watch(log: s8.EpochLog) -> None:
        shown.append(len(log))
        given = [path.read_bytes() for path in folder.glob("s8lib-ranks-*/*")]
        assert given
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                given.append(process.read_bytes())
        assert not any(SECRET.encode() in content for content in given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RANKS, "3")
        patch.setattr("tempfile.tempdir", str(folder))
        log = train(run, tiny, model=model, recipe=recipe(**SHORT), precision="fp32", watch=watch, lines=lines)

    end = outcome(run.path)
    assert [timeless(row) for row in log] == end["log"]
    assert all(torch.equal(tensor, end["weights"][name]) for name, tensor in model.state_dict().items())
    assert shown == list(range(1, EPOCHS + 1))
    assert [line[:12] for line in lines if line.startswith("epoch")] == [f"epoch {n:3d}/{EPOCHS}" for n in shown]
    assert f"finished: {log.summary()}" in lines
    assert s8.RunFolder(folder / "drive").manifest().epoch == EPOCHS, "rank 0 has the run's copies"
    assert json.loads((run.path / "environment.json").read_text())[0]["ranks"] == 3
    assert not [*folder.glob("s8lib-ranks-*")]
    return run.path


class Interrupted(NotebookClient):
    """Does `then` to the kernel when a cell has shown `at`."""

    at, then = "", ""

    def process_message(self, msg: dict[str, Any], cell: nbformat.NotebookNode, index: int) -> Any:
        if self.at and self.at in json.dumps(msg["content"]):
            self.at = ""
            asyncio.ensure_future(getattr(self.km, self.then)())  # noqa: RUF006
        return super().process_message(msg, cell, index)


CELLS = f"""
import s8lib as s8
from tests.runs import recipe, small_model
data, recipe = s8.synthetic_cifar100(seed=0, train=200, test=100), recipe(**{SHORT})
def watch(log):
    print("shown", log[-1].epoch)
# next
log = s8.train(recipe, small_model(), data, "run", device="cpu", precision="fp32", compile="off", watch=watch)
""".split("# next\n")


def test_three_ranks_of_a_notebook_cell_interrupted_or_left_by_their_kernel_go_on_to_the_same_end(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, tiny: s8.Cifar100
) -> None:
    monkeypatch.setenv(RANKS, "3")
    monkeypatch.setenv("PYTHONPATH", str(Path(s8.__file__).parents[1]))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in [*CELLS, CELLS[1]]])
    client = Interrupted(notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": tmp_path}})
    setup, first, second = notebook.cells
    with client.setup_kernel():
        client.execute_cell(setup, 0)
        client.at, client.then = f"epoch   1/{EPOCHS}", "interrupt_kernel"
        client.execute_cell(first, 1)
        said = "".join(output.get("text", "") for output in first.outputs)
        assert first.outputs[-1].ename == "KeyboardInterrupt"
        assert re.search("stopped; the last good checkpoint is epoch [0-9]+ in run, and the same command", said)
        assert f"epoch 1/{EPOCHS}: " in said, "a bar"
        client.at, client.then = "shown", "shutdown_kernel"
        with pytest.raises(DeadKernelError):
            client.execute_cell(second, 2)
    said = json.dumps([cell.outputs for cell in notebook.cells])
    assert said.count(f"epoch   1/{EPOCHS}") == 1
    assert "torch/distributed" not in said

    folder = s8.RunFolder(tmp_path / "run")

    def free() -> bool:
        with contextlib.suppress(s8.RunError), folder.lock():
            return True
        return False

    until(free, 120)
    train(folder, tiny, recipe=recipe(**SHORT), precision="fp32")
    assert_same_bits(outcome(tmp_path / "run"), outcome(uninterrupted))


def test_what_ends_the_ranks_is_raised_where_they_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: s8.Cifar100
) -> None:
    monkeypatch.setenv(RANKS, "2")
    with pytest.raises(s8.NonFiniteLoss, match="epoch 1.*; no checkpoint was saved yet"):
        train(tmp_path, tiny, recipe=recipe(lr_start=1000.0, lr_peak=1000.0, image_size=32), precision="fp32")


class TooLarge(s8.WideResNet):
    """For the GPU of rank 1."""

    def forward(self, x: Tensor) -> Tensor:
        if os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has ...")
        return super().forward(x)


def test_a_rank_that_ends_alone_says_from_where_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: s8.Cifar100
) -> None:
    with pytest.raises(Cut):
        train(tmp_path, tiny, cut_after=1, recipe=recipe(**SHORT))
    monkeypatch.setenv(RANKS, "2")
    with pytest.raises(s8.RunFault, match="too small .*; the last good checkpoint is epoch 1 in"):
        train(tmp_path, tiny, model=TooLarge(10, 1), recipe=recipe(**SHORT))


LEFT_WAITING = """
import os, time
import torch, torch.distributed as dist
from s8lib.machine.ranks import join_ranks
os.environ["WORLD_SIZE"] = "2"
dist.rendezvous = lambda url: iter([(dist.HashStore(), 0, 2)])
dist.init_process_group, dist.get_rank, dist.get_world_size = lambda *_, **__: None, lambda: 0, lambda: 2
dist.get_backend, dist.destroy_process_group = lambda: "nccl", lambda: time.sleep(600)
with join_ranks(torch.device("cpu")):
    raise SystemExit("the sentence")
"""


def test_a_fault_under_nccl_whose_way_out_waits_for_the_other_ranks_is_told_and_ends_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", LEFT_WAITING], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (1, "the sentence\n")


def test_the_device_that_the_environment_names_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s8lib.launch.in_notebook", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    for named, ranks in (("cpu", 0), ("cuda:1", 0), ("", 2)):
        monkeypatch.setenv("S8_DEVICE", named)
        assert ranks_to_start(s8.SEED_100, None, print) == ranks


def test_each_rank_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict.fromkeys(("watch", "run", "hub", "model")) | {"say": print, "device": torch.device("cuda", 0)}

    def saved(told: dict[str, object], path: Path) -> None:
        raise AssertionError(f"each is told {told['device']}.")

    monkeypatch.setattr("s8lib.launch.torch.save", saved)
    with pytest.raises(AssertionError, match=r"^each is told cuda\.$"):
        train_on(2, s8.train, given)


@pytest.mark.parametrize(
    ("gpus", "ranks", "local", "device", "own"),
    [
        (2, 2, 1, None, 1),
        (2, 2, 1, "cuda:1", 1),  # as the command line hands on what it picked
        (2, 2, 0, "cuda:1", None),
        (2, 4, 3, None, None),
        (1, 2, 1, None, None),
        (2, 1, 0, "cuda:1", 1),
    ],
)
def test_two_ranks_on_one_gpu_are_refused(
    gpus: int, ranks: int, local: int, device: str | None, own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_WORLD_SIZE", ranks), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.ones", lambda *_, device: torch.zeros(1))
    if own is not None:
        assert pick_device(device or "cuda") == torch.device("cuda", own)
        return
    with pytest.raises(
        s8.DeviceError, match=f"each of {ranks} ranks here needs a GPU of its own; there are {gpus}"
    ):
        pick_device(device or "cuda")
    if gpus == 1:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # a launcher shows each rank the one that is its own
        assert pick_device("cuda") == torch.device("cuda", 0)


def test_a_batch_that_ranks_cannot_share_is_trained_by_one(
    monkeypatch: pytest.MonkeyPatch, tiny: s8.Cifar100
) -> None:
    monkeypatch.setenv(RANKS, "5")
    lines: list[str] = []
    train(None, tiny, recipe=recipe(**SHORT | {"epochs": 2}), lines=lines)
    assert lines[0] == "batch_size = 48: cannot be shared evenly among 5 GPUs, so one trains alone"
    assert lines[-1].startswith("finished")
    monkeypatch.setenv(RANKS, "two")
    with pytest.raises(s8.DeviceError, match="S8_RANKS = 'two': must be the number of ranks"):
        train(None, tiny)
