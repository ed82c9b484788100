"""What is trained when little is said: recipe, data and the run's name, for command line and notebooks alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from s8lib.data.cifar100 import Cifar100, DataError, load_cifar100
from s8lib.data.synthetic import synthetic_cifar100
from s8lib.machine.device import pick_device
from s8lib.presets import PRESETS, QUICK, SEED_100
from s8lib.recipe import Recipe, RecipeError

SYNTHETIC = "synthetic"  # names the stand-in where a folder is asked for


def choose_recipe(
    name: str = "auto",
    *,
    model: str | None = None,
    seed: int | None = None,
    epochs: int | None = None,
    device: str | torch.device | None = None,
) -> Recipe:
    """A recipe by name, with what else is given in place of its own values.

    Args:
        name: `auto` for the one that the device deserves (`quick` on a CPU, else `seed-100`), a preset's name, or
            the path of a recipe.json.
        epochs: stretch or shorten the whole recipe to this many.
        device: by default the best here.
    Raises:
        RecipeError: for a name that is none of these, or a value that cannot be trained with.
    """
    if name == "auto":
        recipe = QUICK if pick_device(device).type == "cpu" else SEED_100
    elif name in PRESETS:
        recipe = PRESETS[name]
    elif name.endswith(".json"):
        recipe = Recipe.load(name)
    else:
        raise RecipeError(f"there is no recipe {name!r}: use auto, {', '.join(PRESETS)}, or a recipe.json")
    if epochs is not None:
        if epochs < 1:
            raise RecipeError(f"epochs = {epochs}: must be at least 1")
        recipe = recipe.stretched(epochs / recipe.epochs)
    given = {key: value for key, value in (("model", model), ("seed", seed)) if value is not None}
    return recipe.with_settings(given)


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


def run_name(recipe: Recipe, data: Cifar100) -> str:
    """The name of a run's folder: the same for the same recipe, network, kind of data and seed."""
    stand_in = f"-{SYNTHETIC}" if data.source.startswith(SYNTHETIC) else ""
    return f"{recipe.name}-{recipe.model}{stand_in}-seed{recipe.seed}"
