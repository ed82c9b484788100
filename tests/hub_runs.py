"""For the tests of the Hub: clients as processes, and what a commit has to hold."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import s8lib as s8
from s8lib.run.save import Manifest
from tests.hub_endpoints import WRITE, Commit
from tests.local_hub import LocalHub

ROOT = Path(__file__).parents[1]
NAME = "tester/net"
WHEEL = f"s8lib-{s8.__version__}-py3-none-any.whl"
# Beside every save.
USABLE = {WHEEL, "architectures.py", "layers.py", "modeling_s8lib.py", "preprocessor_config.json"}
GIT = {".gitattributes"}  # the Hub's own, which stays


def until(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that has to come."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def arrived() -> None:
    """Wait for the copies under way, whatever comes of them."""
    for thread in threading.enumerate():
        if thread.name.startswith("copy to "):
            thread.join(60)


def check_consistent(commit: Commit, epoch: int, folder: Path, resume: bool = False) -> None:
    """All of a commit, on main or to `resume` from, is of one moment: `epoch`, its log, its best weights."""
    files = {name: file.content for name, file in commit.files.items()}
    checkpoint = f"checkpoints/epoch_{epoch:03d}.pt"
    assert sorted(files.keys() - USABLE - GIT) == [
        *([] if resume else ["README.md"]),
        *([checkpoint] if resume else []),
        "config.json",
        "environment.json",
        "epoch_log.csv",
        *([] if resume else ["graph.jpg"]),
        "manifest.json",
        "model.safetensors",
        "recipe.json",
        "report.json",
    ]
    (folder / "log.csv").write_bytes(files["epoch_log.csv"])
    log = s8.EpochLog.read(folder / "log.csv")
    assert [row.epoch for row in log] == list(range(1, epoch + 1))
    assert resume or f"| final | {epoch} |" in files["README.md"].decode()
    manifest = Manifest.unseal(files["manifest.json"])
    assert (manifest.best_epoch, list(manifest.checkpoints)) == (log.best.epoch, [epoch] if resume else [])
    assert json.loads(files["report.json"])["epochs_done"] == epoch
    for name, entry in manifest.files.items():
        content = files[name.removeprefix("best/")]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.bytes, entry.sha256)
    unnamed = files.keys() - GIT - {name.removeprefix("best/") for name in manifest.files}
    assert unnamed == {"manifest.json"} | (set() if resume else {"README.md"})
    if resume:
        assert torch.load(io.BytesIO(files[checkpoint]), weights_only=True)["model"]["bias"][0] == epoch
    assert safetensors.torch.load(files["model.safetensors"])["bias"][0] == log.best.epoch


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
        if "s8lib.hub_client" in command and f"HF_ENDPOINT={hub.url}\0" in environment:
            found.append(command)
    return found
