"""Runs of the version before, which wrote another manifest, go on: from a disk, from Drive, from the Hub.

`tests/before/s8lib-885fbe0.zip` is that version's package. It makes the runs on the spot, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import s8lib as s8
from s8lib.hub_client import usable_token
from s8lib.run.copies import Copies
from s8lib.run.drive import DriveFolder
from s8lib.run.hub import HubRepo
from s8lib.run.save import WEIGHTS
from tests.hub_endpoints import WRITE
from tests.local_hub import LocalHub, client_of, serve
from tests.runs import assert_same_bits, outcome, recipe, train

SHORT = recipe(epochs=3, phase1_epochs=2, dropout=(0.0, 0.0))  # whose masks have changed since
DROPPING = dataclasses.replace(SHORT, dropout=(0.3, 0.2))
MAKE = """
import json, sys
import torch
import s8lib as s8
from s8lib.checkpoint import RunFolder
from s8lib.drive import DriveMirror

torch.set_num_threads(1)
if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10 does not tell them, and that version asked for 2.11
    torch.cpu.get_capabilities = dict
data = s8.synthetic_cifar100(seed=0, train=200, test=100)

def say(line):
    print(line)
    if line.startswith("epoch   2/"):
        raise KeyboardInterrupt

for asked in json.load(sys.stdin):
    model = s8.build_model("wrn-10-1", dropout=0.3, seed=0)
    mirror = DriveMirror(asked["drive"]) if "drive" in asked else None
    run = RunFolder(asked["run"], print, mirror)
    try:
        recipe = s8.Recipe.from_dict(asked["recipe"])
        s8.train(recipe, model, data, run, device="cpu", compile="off", precision="fp32", say=say)
    except KeyboardInterrupt:
        run.sync()
        if "hub" in asked:
            s8.HubPublisher(asked["hub"]).publish(run)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with serve() as hub, client_of(hub, tmp_path_factory.mktemp("home")):
        yield hub


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Path:
    """Runs of two epochs that the version before made: `run`, `dropping`, one in `MyDrive` and one on the Hub."""
    folder = tmp_path_factory.mktemp("before")
    shutil.unpack_archive(Path(__file__).with_name("before") / "s8lib-885fbe0.zip", folder / "package")
    (folder / "MyDrive").mkdir()
    asked = [
        {"run": "run"},
        {"run": "dropping", "recipe": DROPPING},
        {"run": "lost", "drive": folder / "MyDrive" / "run"},
        {"run": "lost too", "hub": "tester/net"},
    ]
    usual = s8.Recipe().to_dict()  # whatever fields have been added since have their defaults
    for one in asked:
        fields = one.get("recipe", SHORT).to_dict()
        one["recipe"] = {name: value for name, value in fields.items() if value != usual[name]}
    done = subprocess.run(
        [sys.executable, "-P", "-c", MAKE],  # -P: the working folder holds this version
        cwd=folder,
        input=json.dumps(asked, default=str),
        env={**os.environ, "PYTHONPATH": str(folder / "package"), "OMP_NUM_THREADS": "1", "HF_TOKEN": WRITE},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for one in asked:
        assert '"format"' not in (folder / one["run"] / "manifest.json").read_text()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, tiny, recipe=SHORT, precision="fp32")
    return outcome(folder)


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def goes_on(run: s8.RunFolder, data: s8.Cifar100, whole: dict[str, Any]) -> None:
    lines: list[str] = []
    log = train(run, data, recipe=SHORT, precision="fp32", lines=lines)
    assert len([line for line in lines if line.startswith("epoch ")]) == 1, lines
    assert len(log) == 3
    found = outcome(run.path)
    # config.json names the classes since, and what is kept may be less
    assert_same_bits(
        *({**one, "kept": None, "best": (one["best"][0], one["best"][1][WEIGHTS])} for one in (found, whole))
    )
    assert '"format": 3' in (run.path / "manifest.json").read_text()


def test_a_run_folder_goes_on(before: Path, tmp_path: Path, tiny: s8.Cifar100, whole: dict[str, Any]) -> None:
    run = s8.RunFolder(copied(before / "run", tmp_path / "run"), print)
    assert [row.epoch for row in run.log()] == [1, 2]
    assert run.best_weights()[0] == run.log().best.epoch
    goes_on(run, tiny, whole)


def test_a_run_with_dropout_goes_on_and_tells_that_its_masks_differ(
    before: Path, tmp_path: Path, tiny: s8.Cifar100
) -> None:
    lines: list[str] = []
    run = copied(before / "dropping", tmp_path / "run")
    train(run, tiny, recipe=DROPPING, precision="fp32", lines=lines)
    notes = [line for line in lines if "dropout masks 'torch', now '16-bit'" in line]
    assert len(notes) == 1
    assert "last bits" not in notes[0]
    assert "epoch   3/3" in " ".join(lines)


def test_a_kill_between_manifest_and_best_is_mended(
    before: Path, tmp_path: Path, tiny: s8.Cifar100, whole: dict[str, Any]
) -> None:
    run = copied(before / "run", tmp_path / "run")
    (run / "best").rename(run / "best.new")
    assert s8.RunFolder(run).best_weights()[1] == run / "best.new"
    goes_on(s8.RunFolder(run), tiny, whole)
    assert not (run / "best.new").exists()


def test_a_run_on_drive_goes_on_on_another_machine(
    before: Path, tmp_path: Path, tiny: s8.Cifar100, whole: dict[str, Any]
) -> None:
    kept = copied(before / "MyDrive", tmp_path / "MyDrive")
    copies = [Copies(DriveFolder(kept / "run"))]
    goes_on(s8.RunFolder(tmp_path / "new", copies=copies), tiny, whole)
    assert '"format": 3' in (kept / "run" / "manifest.json").read_text()
    assert s8.RunFolder(kept / "run").log()[-1].epoch == 3


def test_a_run_on_the_hub_goes_on_on_another_machine(
    before: Path, tmp_path: Path, tiny: s8.Cifar100, whole: dict[str, Any], hub: LocalHub
) -> None:
    copies = [Copies(HubRepo("tester/net", usable_token()), wait=60, pause=0.0)]
    goes_on(s8.RunFolder(tmp_path / "new", copies=copies), tiny, whole)
    assert b'"format": 3' in hub.commits("tester/net")[-1].files["manifest.json"].content
    assert "checkpoints/epoch_002.pt" in hub.commits("tester/net")[0].files
    assert not [name for name in hub.commits("tester/net")[-1].files if name.endswith(".pt")]
    assert "checkpoints/epoch_003.pt" in hub.resume("tester/net").files
