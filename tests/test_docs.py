"""What README and docs/ tell people to type is there; the examples of `watch` run as they are written.

The trackers, which are not installed, have stand-ins.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import s8lib as s8
from s8lib import cli
from tests.runs import RECIPE, train

ROOT = Path(s8.__file__).parents[1]
PAGE = ROOT / "docs" / "runs.md"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", PAGE)}
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


def test_the_first_things_of_the_readme_are_a_picture_and_the_two_commands_that_help_ends_with() -> None:
    top = PAGES["README.md"].partition("\nFrom a checkout")[0]
    assert re.search(r"\[!\[.+\]\((.+\.jpg)\)\]\(.+\.mov\)", top), "a frame that links the film"
    assert re.search(r"reached [\d.]+% in \w+ epochs on", top), "what it reaches, and on what"
    for first in re.findall(r"`(s8lib [^`]+)`", cli.FIRST_STEPS):
        assert f"\n{first} " in top


def test_every_command_that_people_are_told_to_type_is_taken() -> None:
    commands = []
    for page in PAGES.values():
        commands += re.findall(r"^(?:torchrun .* -m -- )?s8lib (.*?) *(?:#.*)?$", page, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {
        "train", "evaluate", "report", "publish", "predict", "export", "demo", "checks",
    }  # fmt: skip
    for command in commands:
        cli._parser().parse_args(shlex.split(command))
    options = set(re.findall(r"`(?:publish |train |s8lib \w+ )?(--[a-z-]+)", "".join(PAGES.values())))
    help_texts = "".join(one.format_help() for one in cli._parser()._subparsers._group_actions[0].choices.values())
    assert options <= set(re.findall(r"--[a-z-]+", help_texts))


@pytest.mark.parametrize("page", PAGES)
def test_every_name_that_people_are_told_to_call_and_every_link_is_there(page: str) -> None:
    for name in set(re.findall(r"\bs8\.(\w+(?:\.[a-z_]+)*)", PAGES[page])):
        assert operator.attrgetter(name)(s8), name
    folder = ROOT if page == "README.md" else PAGE.parent
    links = re.findall(r"\]\(([^)#]+)|\b(?:src|href)=\"([^\"#]+)", PAGES[page])
    for link in filter(None, (one or other for one, other in links)):
        assert link.startswith("https://") or (folder / link).exists(), link


def test_a_file_imports_from_its_own_row_of_the_house_or_from_below() -> None:
    rows = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```\n")[1].splitlines()
    row_of = {word: row for row, line in reversed([*enumerate(rows)]) for word in re.findall(r"\w+", line)}
    for path in (ROOT / "s8lib").rglob("[!_]*.py"):
        here = path.relative_to(ROOT / "s8lib").with_suffix("").parts[0]
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
        for name in (name for name in names if name.startswith("s8lib.")):
            assert row_of[name.split(".")[1]] >= row_of[here], f"{path} imports {name}"
