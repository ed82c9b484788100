"""Small runs for the tests: a recipe with every kind of boundary, a network that trains in a second."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import s8lib as s8

# Restart at epoch 2, phase change at 4; 4 steps an epoch on 200 images, shrunk: they cost a tenth of whole ones.
RECIPE = s8.Recipe(
    name="test",
    epochs=6,
    phase1_epochs=4,
    batch_size=50,
    warmup_epochs=1,
    cycle_epochs=2,
    patience=None,
    image_size=(8, 12),
    seed=3,
)
MODEL = "wrn-10-1"


class Cut(Exception):
    """Ends a run where a test wants it to end."""


def small_model(seed: int = 0, dropout: float = 0.3) -> s8.WideResNet:
    model = s8.build_model(MODEL, dropout=dropout, seed=seed)
    assert isinstance(model, s8.WideResNet)
    return model


def train(run: Path | None, data: s8.Cifar100, cut_after: int | None = None, **options: Any) -> s8.EpochLog:
    """Train RECIPE in `run`; raise Cut once epoch `cut_after` is saved and logged."""

    def say(line: str) -> None:
        lines.append(line)
        if cut_after is not None and line.startswith(f"epoch {cut_after:3d}/"):
            raise Cut

    lines: list[str] = options.pop("lines", [])
    schedule = options.pop("recipe", RECIPE)
    model = options.pop("model", None)
    model = small_model() if model is None else model
    options = {"device": "cpu", "compile": "off"} | options
    return s8.train(schedule, model, data, run, say=say, **options)


def outcome(run: Path) -> dict[str, Any]:
    """All that two equal runs must agree on: last checkpoint without its times, best weights, epoch log."""
    folder = s8.RunFolder(run)
    state = folder.resume()
    assert state is not None
    return {
        "weights": {name: tensor.clone() for name, tensor in state.model.items()},
        "momentum": [entry["momentum_buffer"] for entry in state.optimizer["state"].values()],
        "scaler": state.scaler,
        "log": [timeless(row) for row in state.log],
        "best": (folder.manifest().best_epoch, folder.manifest().best()),
        "kept": sorted(path.name for path in folder.checkpoints.iterdir()),
    }


def timeless(row: s8.Epoch) -> s8.Epoch:
    return dataclasses.replace(row, seconds=0.0, images_per_s=0.0)


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["log"] == other["log"]
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name
    for mine, theirs in zip(one["momentum"], other["momentum"], strict=True):
        assert torch.equal(mine, theirs)
    for part in ("scaler", "best", "kept"):
        assert one[part] == other[part]


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`python -m s8lib` as a process of its own; stdout and stderr in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "s8lib", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(s8.__file__).parents[1]), **environment},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a `command`."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def recipe(**fields: Any) -> s8.Recipe:
    """RECIPE with other values."""
    return dataclasses.replace(RECIPE, **fields)
