"""The data that are trained on when little is said, for command line and notebooks alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from s8lib.data.cifar100 import Cifar100, DataError, load_cifar100
from s8lib.data.synthetic import synthetic_cifar100

SYNTHETIC = "synthetic"  # names the stand-in where a folder is asked for


def choose_data(
    where: str | Path | None = None, *, may_stand_in: bool = False, say: Callable[[str], None] = print
) -> Cifar100:
    """The data in the folder `where`, else in $S8_DATA, the cache or from a download; see `load_cifar100`.

    Either may say `synthetic` instead of a folder: the stand-in, which shows that everything works but nothing
    about CIFAR-100. With `may_stand_in` it also takes the place, loudly, of a download that fails.
    """
    named = str(where or os.environ.get("S8_DATA", ""))
    if named == SYNTHETIC:
        return _stand_in()
    try:
        return load_cifar100(where, download=where is None)
    except DataError as error:
        if named or not may_stand_in:
            raise
        say(
            f"NOTE: CIFAR-100 cannot be had: {error}\n"
            "NOTE: training on the SYNTHETIC stand-in instead. It shows that everything works; its accuracy says "
            "nothing about CIFAR-100."
        )
        return _stand_in()


def _stand_in() -> Cifar100:
    return synthetic_cifar100(train=2500, test=500)  # `quick` needs a minute or so for these
