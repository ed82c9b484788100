"""For the tests of the Hub: a run folder that grows untrained, clients as processes, what a commit has to hold."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import s8lib as s8
from s8lib.models.weights import save_model
from tests.hub_endpoints import WRITE, Commit
from tests.local_hub import LocalHub
from tests.runs import RECIPE, small_model

ROOT = Path(__file__).parents[1]
NAME = "tester/net"


class Run:
    """A run folder that gains an epoch a call, the way `train` fills it; epoch n's weights say n."""

    def __init__(self, path: Path, recipe: s8.Recipe = RECIPE) -> None:
        self.folder, self.log, self.model = s8.RunFolder(path, say=lambda line: None), s8.EpochLog(), small_model()
        self.folder.checkpoints.mkdir(parents=True)
        self.folder.write_json("recipe.json", recipe.to_dict())
        self.folder.write_json("environment.json", [{"device": "none"}])

    @property
    def path(self) -> Path:
        return self.folder.path

    def epoch(self, publisher: s8.HubPublisher | None = None) -> None:
        n = len(self.log) + 1
        accuracy = n if n % 4 == 3 else n / 2  # best epochs: 1, 2, 3, 7, 11, 15, 19, 23
        best = max([accuracy, *(row.best_acc for row in self.log)])
        row = [n, 1, 0.1, 0.0, 0.0, "full", 1.0, 50.0, 1.0, accuracy, 90.0, best, 100.0, 1.0]
        self.log.append(s8.Epoch(*row))  # type: ignore[arg-type]
        torch.nn.init.constant_(self.model.fc.bias, n)
        is_best = self.log.best is self.log[-1]
        save_best = (lambda folder: save_model(self.model, folder)) if is_best else None
        self.folder.save(n, {"model": self.model.state_dict(), "epoch": n}, self.log.to_csv(), save_best)
        if publisher:
            publisher.after_epoch(self.folder, self.log)

    def epochs(self, until: int, publisher: s8.HubPublisher | None = None) -> Run:
        while len(self.log) < until:
            self.epoch(publisher)
        return self

    def content(self) -> dict[str, str]:
        """sha256 of every file that training writes, by name."""
        others = (".lock", "report.json", "graph.jpg")  # the latter two are drawn when something is published
        files = (path for path in self.path.rglob("*") if path.is_file() and path.name not in others)
        return {str(f.relative_to(self.path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def until(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that has to come."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def check_consistent(commit: Commit, epoch: int, folder: Path) -> None:
    """All of a commit is of one moment: `epoch`, its checkpoint, its log, and the log's best weights."""
    files = {name: file.content for name, file in commit.files.items()}
    checkpoint = f"checkpoints/epoch_{epoch:03d}.pt"
    assert sorted(files) == [
        "README.md",
        checkpoint,
        "config.json",
        "environment.json",
        "epoch_log.csv",
        "graph.jpg",
        "manifest.json",
        "model.safetensors",
        "recipe.json",
        "report.json",
    ]
    (folder / "log.csv").write_bytes(files["epoch_log.csv"])
    log = s8.EpochLog.read(folder / "log.csv")
    assert [row.epoch for row in log] == list(range(1, epoch + 1))
    assert f"| final | {epoch} |" in files["README.md"].decode()
    manifest = json.loads(files["manifest.json"])
    assert manifest["best"]["epoch"] == log.best.epoch
    assert json.loads(files["report.json"])["epochs_done"] == epoch
    assert list(manifest["checkpoints"]) == [Path(checkpoint).name]
    for content, entry in (
        (files[checkpoint], manifest["checkpoints"][Path(checkpoint).name]),
        (files["model.safetensors"], manifest["best"]),
    ):
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert torch.load(io.BytesIO(files[checkpoint]), weights_only=True)["epoch"] == epoch
    assert safetensors.torch.load(files["model.safetensors"])["fc.bias"][0] == log.best.epoch


def in_process(hub: LocalHub, home: Path, script: str, **values: Any) -> Any:
    """What `script` leaves in `out`, run in a process whose client talks to `hub`; `values` are its globals."""
    frame = f"import json, sys\nglobals().update(json.load(sys.stdin))\n{script}\nprint('\\n' + json.dumps(out))"
    done = subprocess.run(
        [sys.executable, "-c", frame],
        input=json.dumps({"name": NAME, "token": WRITE, **values}, default=str),
        capture_output=True,
        text=True,
        env={**os.environ, **hub.environment(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def clients_of(hub: LocalHub) -> list[str]:
    """The command lines of the processes on this machine that the publisher started to talk to `hub`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((process / name).read_bytes().decode() for name in ("cmdline", "environ"))
        except OSError:
            continue  # it has just ended, or is someone else's
        if "hub_client.py" in command and f"HF_ENDPOINT={hub.url}\0" in environment:
            found.append(command)
    return found
