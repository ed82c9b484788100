"""The notebooks' first cell finds the project with nothing typed; `make door` has it really install."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest

import s8lib as s8
from tests.test_colab import content  # noqa: F401  (a fixture)
from tools import notebooks

ROOT = Path(s8.__file__).parents[1]
CELL = (ROOT / "tools" / "install_cell.py").read_text(encoding="utf-8")
REPO = "https://github.com/someone/s8lib.fork"


@pytest.mark.parametrize("name", ["session_8.ipynb", "save_to_hugging_face.ipynb"])
def test_both_notebooks_begin_with_that_cell(name: str) -> None:
    first = next(cell for cell in nbformat.read(ROOT / name, as_version=4).cells if cell.cell_type == "code")
    kept = [line for line in first.source.splitlines() if not line.startswith(("EXTRAS = ", "ADDRESS = "))]
    assert kept == [line for line in CELL.splitlines() if not line.startswith(("EXTRAS = ", "ADDRESS = "))]


def test_a_badge_opens_the_notebook_of_the_project_on_github_and_goes_with_it() -> None:
    address = "git@github.com:someone/s8lib.fork.git"
    repo = re.fullmatch(notebooks.GITHUB, address)[1]  # type: ignore[index]
    page = "https://colab.research.google.com/github/someone/s8lib.fork/blob/main/session_8.ipynb"
    dressed = notebooks.with_badge("Train a network.\n\nMore.", "session_8.ipynb", repo)
    assert dressed.splitlines()[0].endswith(f"({page})")
    assert notebooks.with_badge(dressed, "session_8.ipynb", repo) == dressed
    assert notebooks.with_badge(dressed, "session_8.ipynb", "") == "Train a network.\n\nMore."
    assert not re.fullmatch(notebooks.GITHUB, "https://example.org/someone/s8lib")


def test_storing_the_notebook_of_a_project_on_github_writes_its_badge_and_address_and_keeps_the_extras() -> None:
    title = nbformat.v4.new_markdown_cell("# Title\n\nThe notebook `y_1.ipynb` publishes it.")
    cell = nbformat.v4.new_code_cell('# @title Install, of before\nEXTRAS = "[demo]"')
    notebook = nbformat.v4.new_notebook(cells=[title, cell])
    page = "https://colab.research.google.com/github/someone/s8lib.fork/blob/main"
    for _ in range(2):
        notebooks.dress(notebook, "x.ipynb", "someone/s8lib.fork")
        said = f"({page}/x.ipynb)\n\n# Title\n\nThe notebook [`y_1.ipynb`]({page}/y_1.ipynb) publishes it."
        assert title.source.endswith(said)
    expected = CELL.rstrip().replace('EXTRAS = ""', 'EXTRAS = "[demo]"')
    assert cell.source == expected.replace('ADDRESS = ""', f'ADDRESS = "git+{REPO}"')
    notebooks.dress(notebook, "x.ipynb", "")
    assert title.source == "# Title\n\nThe notebook `y_1.ipynb` publishes it."


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip was asked for, in an empty working folder on a machine without s8lib."""
    asked: list[list[str]] = []
    find = metadata.distributions
    monkeypatch.setattr(metadata, "distributions", lambda **k: () if k.get("name") == "s8lib" else find(**k))
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command[2:]))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("COLAB_JUPYTER_IP", "KMP_TARGET_PORT"):
        monkeypatch.delenv(name, raising=False)
    return asked


def run_cell(tmp_path: Path, address: str = "") -> None:
    source = CELL.replace('ADDRESS = ""', f"ADDRESS = {address!r}")
    source = source.replace("/content/drive", str(tmp_path / "content" / "drive"))
    exec(compile(source.replace("/kaggle/input", str(tmp_path / "input")), "cell", "exec"), {})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Colab's own server, which tells from where the notebook was opened: the one path in this list."""
    paths: list[str] = []

    class Sessions(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps([{"path": path, "name": "session_8.ipynb"} for path in paths]).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sessions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
    monkeypatch.setenv("KMP_TARGET_PORT", str(server.server_port))
    yield paths
    server.shutdown()
    server.server_close()


def test_what_is_installed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be installed"))
    run_cell(tmp_path)


@pytest.mark.parametrize("branch", ["main", "feature/x"])
def test_opened_from_github_on_colab_that_very_revision_is_installed_and_what_is_there_stays(
    tmp_path: Path, asked: list[list[str]], opened: list[str], branch: str
) -> None:
    opened.append("fileId=" + quote(f"{REPO}/blob/{branch}/session_8.ipynb"))
    run_cell(tmp_path, "git+https://github.com/typed/elsewhere")
    (command,) = asked
    assert command[-1] == f"s8lib @ {REPO}/archive/{branch}.zip"
    for name in ("torch", "torchvision", "numpy", "protobuf"):
        assert f"{name}=={metadata.version(name)}" in command


def test_a_copy_on_drive_finds_the_project_by_the_badge_in_its_first_cell(
    tmp_path: Path,
    content: Path,  # noqa: F811
    asked: list[list[str]],
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened.append("fileId=1a2b3c")
    page = "https://colab.research.google.com/github/someone/s8lib.fork/blob/main/session_8.ipynb"
    badge = f"[![Open in Colab](x.svg)]({page})"
    monkeypatch.setenv("FAKE_COLAB_NOTEBOOK", json.dumps({"cells": [{"source": [badge, "\n", "# Title"]}]}))
    run_cell(tmp_path)
    assert asked[0][-1] == f"s8lib @ {REPO}/archive/main.zip"


def test_a_copy_without_a_badge_looks_on_drive(
    tmp_path: Path,
    content: Path,  # noqa: F811
    asked: list[list[str]],
    opened: list[str],
) -> None:
    opened.append("fileId=1a2b3c")
    package = tmp_path / "cloud" / "my copy" / "s8lib"
    package.mkdir(parents=True)
    (package / "hub_client.py").touch()
    run_cell(tmp_path)
    copy = Path(asked[0][-1].removeprefix("s8lib @ file://"))
    assert (copy / "s8lib" / "hub_client.py").exists()


@pytest.mark.parametrize(
    "where",
    [
        "here",
        ".",
        "input/a-dataset",
        "input/datasets/someone/a-dataset",
        "input/datasets/someone/a-dataset/s8lib-main",
        "input/notebooks/someone/a-notebook",
        "content/drive/MyDrive/a copy",
        "content/drive/MyDrive/Colab Notebooks/a copy",
    ],
)
def test_a_checkout_at_hand_is_copied_and_built_and_stays_as_it_was(
    tmp_path: Path, asked: list[list[str]], where: str
) -> None:
    package = tmp_path / where / "s8lib"
    package.mkdir(parents=True)
    (package / "hub_client.py").touch()
    (tmp_path / where / ".venv").mkdir()
    os.chmod(tmp_path / where, 0o555)
    run_cell(tmp_path, "git+https://github.com/typed/elsewhere")
    os.chmod(tmp_path / where, 0o755)
    copy = Path(asked[0][-1].removeprefix("s8lib @ file://"))
    assert [path.name for path in copy.iterdir() if path.name != "here"] == ["s8lib"]


def test_a_typed_folder_may_begin_with_a_tilde(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "net" / "s8lib").mkdir(parents=True)
    (tmp_path / "home" / "net" / "s8lib" / "hub_client.py").touch()
    run_cell(tmp_path, "~/net")
    assert asked[0][-1].startswith("s8lib @ file://")


@pytest.mark.parametrize("mount", ["refused", "unsupported", "timeout", "empty"])
@pytest.mark.parametrize("address", ["", "/content/drive/MyDrive/a copy"])
def test_a_drive_that_cannot_be_looked_into_leaves_the_field_in_a_sentence(
    tmp_path: Path,
    content: Path,  # noqa: F811
    asked: list[list[str]],
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    mount: str,
    address: str,
) -> None:
    from google.colab import _message, drive

    opened.append("fileId=1a2b3c")
    monkeypatch.setenv("FAKE_COLAB_MOUNT", mount)
    if mount == "empty":
        monkeypatch.setattr(drive, "mount", lambda folder: (content / "drive").mkdir(exist_ok=True))

    def refused(*_: object, **__: object) -> None:
        raise _message.MessageError("Error: this front end does not tell")

    monkeypatch.setattr(_message, "blocking_request", refused)
    with pytest.raises(ValueError, match="say in ADDRESS where your copy of s8lib is"):
        run_cell(tmp_path, address)
    assert asked == []


def test_what_a_build_left_in_the_folder_is_no_installation(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for name in ("s8lib", "s8lib.egg-info"):
        (here / name).mkdir()
    (here / "s8lib" / "hub_client.py").touch()
    (here / "s8lib.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: s8lib\nVersion: 0.1.0\n")
    find = metadata.Distribution.discover
    monkeypatch.setattr(
        metadata, "distributions", lambda name: find(name=name, path=[str(here)] if name == "s8lib" else sys.path)
    )
    run_cell(tmp_path)
    assert asked[0][-1].startswith("s8lib @ file://")
    (here / "s8lib.egg-info").rename(here / "s8lib-0.1.0.dist-info")
    (here / "s8lib-0.1.0.dist-info" / "METADATA").write_text("Name: s8lib\n")
    (here / "s8lib-0.1.0.dist-info" / "RECORD").write_text("s8lib/hub_client.py,,\n")
    run_cell(tmp_path)
    assert len(asked) == 1


def test_elsewhere_the_field_is_taken_and_missed_in_a_sentence(tmp_path: Path, asked: list[list[str]]) -> None:
    run_cell(tmp_path, "git+https://github.com/typed/elsewhere")
    assert asked[0][:3] == ["pip", "install", "--quiet"]
    assert asked[0][-1] == "s8lib @ git+https://github.com/typed/elsewhere"
    with pytest.raises(ValueError, match="say in ADDRESS where your copy of s8lib is"):
        run_cell(tmp_path)


def test_a_machine_that_installed_for_the_other_notebook_gets_the_extras_of_this_one(
    asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = metadata.distribution("numpy")
    monkeypatch.setattr(metadata, "distributions", lambda name: () if name == "onnxscript" else (there,))
    exec(compile(CELL.replace('EXTRAS = ""', 'EXTRAS = "[demo,export]"'), "cell", "exec"), {})
    assert asked[0][-1] == "s8lib[demo,export]", "pip takes the s8lib that is there"
