"""Dropout's masks of 16-bit numbers beside torch's, in short runs: `python -m benchmarks.masks --json FILE`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import s8lib as s8
from benchmarks.checkout import commit_of_checkout
from s8lib.machine.device import environment
from s8lib.models.layers import Dropout

MASKS = {"16-bit": Dropout.forward, "torch": torch.nn.Dropout.forward}


def accuracies(recipe: s8.Recipe, data: s8.Cifar100, masks: str) -> list[float]:
    """Test accuracy after each epoch, on a CPU, where alone the two differ."""
    model = s8.build_model(recipe.model, len(data.classes), recipe.at(0).dropout, seed=recipe.seed)
    with mock.patch.object(Dropout, "forward", MASKS[masks]):
        return [row.test_acc for row in s8.train(recipe, model, data, device="cpu", precision="fp32")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masks", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    options = parser.parse_args(arguments)
    data = s8.choose_data(None)
    short = s8.choose_recipe("seed-100", model="wrn-10-1", epochs=2, device="cpu")
    short = dataclasses.replace(short, batch_size=64)
    runs: list[dict[str, Any]] = [{"seed": seed} for seed in range(options.seeds)]
    for run in runs:
        run |= {masks: accuracies(dataclasses.replace(short, seed=run["seed"]), data, masks) for masks in MASKS}
    report = {"commit": commit_of_checkout(), "environment": environment(torch.device("cpu"))}
    options.json.write_text(json.dumps({**report, "recipe": short.to_dict(), "runs": runs}, indent=1) + "\n")
    for masks in MASKS:
        finals = [run[masks][-1] for run in runs]
        print(f"{masks}: {statistics.mean(finals):.2f}%, standard deviation {statistics.stdev(finals):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
