"""The examples of docs/ run as they are written, with stand-ins for the trackers, which are not installed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import s8lib as s8
from tests.runs import RECIPE, train

PAGE = Path(s8.__file__).parents[1] / "docs" / "runs.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


class Writer:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        TOLD.append((tag, scalar_value, global_step))

    def flush(self) -> None:
        pass


TOLD: list[Any] = []


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_of_watch_is_told_every_epoch(
    number: int, tiny: s8.Cifar100, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard = types.ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = Writer  # type: ignore[attr-defined]
    wandb = types.ModuleType("wandb")
    wandb.init = lambda project, name, config: TOLD.append(config)  # type: ignore[attr-defined]
    wandb.log = lambda data: TOLD.append(("test_acc", data["test_acc"], data["epoch"]))  # type: ignore[attr-defined]
    for module in (tensorboard, wandb):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    TOLD.clear()
    names: dict[str, Any] = {"recipe": RECIPE}
    exec(compile(BLOCKS[number], f"block {number}", "exec"), names)
    log = train(None, tiny, watch=names["watch"])
    assert [("test_acc", row.test_acc, row.epoch) for row in log] == [
        one for one in TOLD if isinstance(one, tuple) and one[0] == "test_acc"
    ]
