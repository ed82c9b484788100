"""A progress bar where a person is looking: on a terminal, or in a notebook."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(steps: range, what: str, shown: bool = True, only_time: bool = False) -> tqdm[int]:
    """`steps` with a bar that vanishes when they are done, or just the time since; none in a file or a pipe.

    In a notebook it is a line of text on stdout, where the epochs' lines are too: a widget would leave an empty
    output behind for every epoch.
    """
    if not shown:
        return tqdm(steps, disable=True)
    form = "{desc}: {elapsed}" if only_time else None
    if in_notebook():
        where = {"file": sys.stdout, "ncols": 100, "mininterval": 0.5, "maxinterval": 2}
        return tqdm(steps, what, leave=False, bar_format=form, **where)
    return tqdm(steps, what, leave=False, bar_format=form, disable=None)  # None: only where stderr is a terminal


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")  # not imported: where it was not, this is no notebook
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
