"""What every test file shares: the real dataset where it is at hand, and a small learnable stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import s8lib as s8
from s8lib.hub_client import ask
from tests.browser import start
from tests.hub_runs import clients_of, until
from tests.local_hub import LocalHub, client_of, serve

os.environ["S8_DEVICE"] = "cpu"  # the same tests on every machine; those of a GPU name it


def _real_root() -> Path | None:
    root = os.environ.get("S8_DATA")
    return Path(root) if root and (Path(root) / "cifar-100-python" / "train").is_file() else None


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The folder that holds `cifar-100-python/`, from $S8_DATA."""
    root = _real_root()
    if root is None:
        pytest.skip("the real CIFAR-100 is not here: point S8_DATA at the folder that holds cifar-100-python/")
    return root


@pytest.fixture(scope="session")
def real(real_root: Path) -> s8.Cifar100:
    return s8.load_cifar100(real_root, download=False)


@pytest.fixture(scope="session")
def tiny() -> s8.Cifar100:
    """200 + 100 synthetic images: enough for a run of two steps an epoch."""
    return s8.synthetic_cifar100(seed=0, train=200, test=100)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub that this process and those of the publisher talk to."""
    monkeypatch.setattr("s8lib.publish.publisher.FIRST_PAUSE", 0.0)
    with serve() as hub, client_of(hub, tmp_path / "home"):
        yield hub


@pytest.fixture
def processes(hub: LocalHub) -> Iterator[None]:
    """Each question to the Hub and each upload has a process of its own, as outside the tests; none stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s8lib.hub_client.ask", ask)
        yield
        until(lambda: not clients_of(hub))


@pytest.fixture(scope="session", autouse=True)
def _no_power_cuts() -> Iterator[None]:
    """Nobody pulls the plug here, and to be safe from that takes up to nine tenths of a save's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = start(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.quit()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that at the end no core waits for one of them."""
    longest = {f"test_{name}" for name in ("cli", "notebooks", "hub", "drive", "ranks", "hub_branches", "trainer")}
    items.sort(key=lambda item: item.path.stem not in longest)


@pytest.fixture(autouse=True)
def _gpu_marker(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
