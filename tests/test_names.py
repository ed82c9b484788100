"""Any name goes: `~`, colons and dashes in paths, and letters that the terminal does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import s8lib as s8
from s8lib import cli
from s8lib.machine.progress import Table
from s8lib.report import contents, epoch_table, overview, schedule_table
from tests.runs import RECIPE, finish, small_model, train

ROOT = Path(s8.__file__).parents[1]


def python(*arguments: object, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of a Python process in `cwd`."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
    )
    return finish(process)


@pytest.fixture(scope="module")
def run(tiny: s8.Cifar100, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "12:30:00"
    train(folder, tiny, recipe=RECIPE.stretched(0.5))
    return folder


@pytest.mark.parametrize("name", ["--run=12:30:00", "--run=-dash"])
def test_a_run_of_any_name_gets_its_film(
    run: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name.partition("=")[2]
    folder.symlink_to(run)
    (run / "epoch_log.mov").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("S8_DATA", str(tmp_path))
    assert cli.main(["report", name, "--device", "cpu"]) == 0
    assert (folder / "epoch_log.mov").stat().st_size > 10_000


TRAIN = """
import s8lib as s8
from tests.runs import RECIPE
data = s8.load_folder("питомцы")
recipe = RECIPE.with_settings({"batch_size": 4})
s8.train(recipe, s8.build_model("wrn-10-1", 2), data, "другой λ", device="cpu", compile="off")
"""


def test_a_terminal_without_the_letters_of_a_name_never_ends_a_run(tmp_path: Path) -> None:
    for name in ("кот", "пёс"):
        (tmp_path / "питомцы" / name).mkdir(parents=True)
        for grey in range(6):
            Image.new("L", (9, 9), grey).save(tmp_path / "питомцы" / name / f"{grey}.png")
    few = ("--recipe", "quick", "--model", "wrn-10-1", "--epochs", "1", "--set", "batch_size=4", "--device", "cpu")
    line = ("-m", "s8lib", "train", "--data", "питомцы", "--run", "пробег λ", *few)
    code, output = python(*line, cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert code == 0, output
    assert "run folder: ?????? ?" in output
    code, output = python("-c", TRAIN, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert code == 0, output
    assert "???????, 2 classes" in output


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    (home / "run").symlink_to(run)
    RECIPE.save(home / "recipe.json")
    Image.new("RGB", (40, 40)).save(home / "picture.png")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    assert s8.RunFolder("~/run").log()
    small_model().save_pretrained("~/best")
    s8.predict(s8.load_model("~/best"), "~/picture.png")
    s8.WideResNet.from_pretrained("~/best")
    s8.Recipe.load("~/recipe.json").save("~/again.json")
    assert s8.choose_recipe("~/again.json").name == "test"
    for load in (partial(s8.load_cifar100, download=False), s8.load_folder):
        with pytest.raises(s8.DataError, match=str(home)):
            load("~/run")
    assert cli.main(["report", "--run", "~/run", "--no-video", "--device", "cpu", "--data", "~/run"]) == 2
    assert str(home / "run") in capsys.readouterr().err
    assert not list(elsewhere.iterdir()), "nothing is called ~"


def test_tables_are_text_in_a_terminal_and_tables_in_a_notebook(run: Path, tiny: s8.Cifar100) -> None:
    folder = s8.RunFolder(run)
    log = folder.log()
    head = {epoch_table(log): 13, schedule_table(RECIPE): 9}
    measured = s8.evaluate(s8.load_model(run / "best"), tiny.test, "cpu").table(tiny.classes)
    for table in (*head, measured, overview(folder), contents(folder)):
        assert isinstance(table, Table)
        assert str(table) == repr(table)
        rows = table._repr_html_().split("<tr>")[1:]
        assert len(rows) == len(table.splitlines())
        if table in head:
            assert {row.count("</td>") + row.count("</th>") for row in rows} == {head[table]}
        assert all(row.count("</td>") > 1 for row in rows[table in head :])
    assert "&lt;b&gt;" in Table("<b>  1")._repr_html_()
