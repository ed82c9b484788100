"""What a person is shown, on any terminal or in a notebook: lines, tables, and a bar while something runs."""

import html
import os
import re
import sys
from typing import Any

from tqdm import tqdm

IN_NOTEBOOK = "S8_IN_NOTEBOOK"  # set for processes whose stdout a notebook shows


def tell(line: str) -> None:
    """Print `line`; a letter that the terminal's encoding lacks becomes `?`, so that no run ends by a name."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding), flush=True)


class Table(str):
    """Text whose columns are two blanks apart; a notebook shows it as a table of HTML.

    With `head`, the first line names the columns.
    """

    _head: bool

    def __new__(cls, text: str, head: bool = False) -> "Table":
        table = super().__new__(cls, text)
        table._head = head
        return table

    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        rows = [[html.escape(cell) for cell in re.split(" {2,}", line.strip())] for line in self.splitlines()]
        tags = ["th"] * self._head + ["td"] * len(rows)
        align = "right" if self._head else "left"
        cell = f'<{{0}} style="text-align: {align}">{{1}}</{{0}}>'.format
        lines = ("".join(cell(tag, text) for text in row) for tag, row in zip(tags, rows, strict=False))
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def progress_bar(steps: range, what: str, shown: bool = True) -> "tqdm[int]":
    """`steps` with a bar that vanishes when they are done; none in a file or a pipe."""
    return tqdm(steps, what, leave=False, **_where()) if shown else tqdm(steps, disable=True)


def byte_bar(what: str) -> "tqdm[Any]":
    """A bar for bytes that move, with their rate; its `total` may be set later. It vanishes as `progress_bar`."""
    return tqdm(desc=what, leave=False, unit="B", unit_scale=True, miniters=0, **_where())


def _where() -> dict[str, Any]:
    """In a notebook a line of text on stdout, where the epochs' lines are too, as a widget would leave an empty
    output behind for every epoch. Elsewhere only where stderr is a terminal.
    """
    if in_notebook():
        return {"file": sys.stdout, "ncols": 100, "mininterval": 0.5, "maxinterval": 2}
    return {"disable": None}


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, or one whose stdout that shows."""
    ipython = sys.modules.get("IPython")  # not imported: where it was not, this is no notebook
    shell = ipython.get_ipython() if ipython else None
    return IN_NOTEBOOK in os.environ or (shell is not None and "IPKernelApp" in shell.config)
