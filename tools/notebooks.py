"""Execute notebooks: `run` one here, its lines shown as they come, or `store` the outputs kept in them."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
GITHUB = r"(?:https://|git@|ssh://git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?"
COLAB = "https://colab.research.google.com"
EXECUTED = ROOT / "s8lib-runs"  # where the notebook keeps its runs


class EchoingClient(NotebookClient):
    """Prints what cells print, when they print it."""

    def process_message(self, msg: dict[str, Any], cell: nbformat.NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def run(notebook: Path, folder: Path, executed: Path) -> None:
    """Execute `notebook` in `folder`; `executed` becomes the copy with outputs, up to a cell that failed."""
    content = nbformat.read(notebook, as_version=4)
    client = EchoingClient(content, timeout=None, resources={"metadata": {"path": folder}}, coalesce_streams=True)
    client.extra_arguments = ["--log-level=ERROR"]  # not how the kernel is connected, each time
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"\n{notebook.name} stopped: {error.ename}: {error.evalue}")
    finally:
        executed.parent.mkdir(exist_ok=True)
        nbformat.write(content, executed)


def store(notebooks: list[Path]) -> None:
    """Execute `notebooks`, in their order, in a folder that holds only `results/`, and keep their outputs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "results", folder / "results")
        remote = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
        found = re.fullmatch(GITHUB, remote.stdout.strip())
        repo, readme = found[1] if found else "", ROOT / "README.md"
        title, _, text = readme.read_text(encoding="utf-8").partition("\n\n")
        readme.write_text(f"{title}\n\n{with_badge(text, notebooks[0].name, repo)}", encoding="utf-8")
        for notebook in notebooks:
            content = nbformat.read(notebook, as_version=4)
            dress(content, notebook.name, repo)
            nbformat.write(content, notebook)
            run(notebook, folder, folder / notebook.name)
            keep(nbformat.read(folder / notebook.name, as_version=4), notebook)


def with_badge(text: str, name: str, repo: str) -> str:
    """`text` below a badge that opens the notebook `name` of `repo`, if that is on GitHub, on Colab."""
    text = re.sub(r"^\[!\[Open in Colab.*\n\n", "", text)
    badge = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{repo}/blob/main/{name})"
    return f"{badge}\n\n{text}" if repo else text


def with_links(text: str, repo: str) -> str:
    """`text` in which each mention of a notebook opens that one of `repo`, if that is on GitHub, on Colab."""
    text = re.sub(r"\[(`\w+\.ipynb`)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`(\w+\.ipynb)`", rf"[\g<0>]({COLAB}/github/{repo}/blob/main/\1)", text) if repo else text


def dress(content: nbformat.NotebookNode, name: str, repo: str) -> None:
    """Give a notebook the cell that installs, with the address of `repo` on GitHub, its badge and links."""
    (cell,) = (cell for cell in content.cells if cell.source.startswith("# @title Install"))
    extras = re.search(r"^EXTRAS = .*", cell.source, re.MULTILINE)
    cell.source = (ROOT / "tools" / "install_cell.py").read_text(encoding="utf-8").rstrip()
    cell.source = cell.source.replace('EXTRAS = ""', extras[0] if extras else 'EXTRAS = ""')
    for text in (cell for cell in content.cells if cell.cell_type == "markdown"):
        text.source = with_links(text.source, repo)
    content.cells[0].source = with_badge(content.cells[0].source, name, repo)
    if repo:
        cell.source = cell.source.replace('ADDRESS = ""', f'ADDRESS = "git+https://github.com/{repo}"')


def keep(content: nbformat.NotebookNode, notebook: Path) -> None:
    """Write what was executed to `notebook`, with its outputs as a front end shows them."""
    for cell in content.cells:
        cell.metadata.pop("execution", None)  # times, which would change with every run
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = as_shown(output.text)
        cell.get("outputs", [])[:] = [o for o in cell.get("outputs", []) if o.get("text", "-").strip()]
    nbformat.write(content, notebook)


def as_shown(text: str) -> str:
    """What a front end shows of a stream: a carriage return goes back to the start of the line."""
    return re.sub(r"^.*\r(?!$)|\r$", "", text, flags=re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("run", "store"))
    parser.add_argument("notebooks", nargs="+", type=Path)
    options = parser.parse_args()
    if options.command == "store":
        store(options.notebooks)
    else:
        for notebook in options.notebooks:
            run(notebook, notebook.resolve().parent, EXECUTED / notebook.name)


if __name__ == "__main__":
    main()
