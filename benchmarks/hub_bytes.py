"""What a run costs on the Hub: `python -m benchmarks.hub_bytes`, against the Hub on loopback of the tests.

A hundred epochs are published every ten, each time with new best weights, which is the dearest a run can be.
Weights and checkpoint are those of wrn-28-10, `--scale` times smaller; the figures are scaled back. It counts what
the Hub received in bodies of requests, and what its branches keep with their histories, each content once. To
measure another commit, put the folder that holds its `s8lib` first in PYTHONPATH, and start in that folder.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import s8lib as s8
from s8lib.run.checkpoint import Checkpoint
from tests.hub_runs import NAME
from tests.local_hub import client_of, serve
from tests.saves import Machine, row

PARAMETERS, EPOCHS, EVERY = 36_536_884, 100, 10  # wrn-28-10's, with 100 classes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hub_bytes", description=__doc__)
    parser.add_argument("--scale", type=int, default=20, metavar="N")
    scale = parser.parse_args().scale
    with tempfile.TemporaryDirectory() as folder, serve() as hub, client_of(hub, Path(folder, "home")):
        publish(Path(folder, "run"), PARAMETERS // scale)
        repo = hub.endpoints.repos[NAME]
        heads = {content.oid: len(content.content) for content in repo.head.files.values()}
        figures = {"sent": hub.received, "stored": repo.stored(), "of that at main's head": sum(heads.values())}
    for what, size in figures.items():
        print(f"{what}: {size * scale / 1e9:.2f} GB")


def publish(path: Path, parameters: int) -> None:
    """Save and publish random weights; what happens between two commits leaves no trace on the Hub."""
    machine = Machine(path)
    publisher = s8.HubPublisher(NAME, every=EVERY, wait=600)
    for epoch in range(EVERY, EPOCHS + 1, EVERY):
        weights = {"weight": torch.randn(parameters)}
        rows = s8.EpochLog(row(n, accuracy=n / 2, best=n / 2) for n in range(1, epoch + 1))
        momentum = {"state": {0: {"momentum_buffer": torch.randn(parameters)}}, "param_groups": []}
        machine.run.claim()
        machine.run.save(
            Checkpoint(machine.identity, weights, momentum, {}, rows), functools.partial(save_best, weights)
        )
        if not publisher.finish(machine.run):
            raise SystemExit("a commit was not made")


def save_best(weights: dict[str, torch.Tensor], folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    save_file(weights, folder / "model.safetensors")


if __name__ == "__main__":
    main()
