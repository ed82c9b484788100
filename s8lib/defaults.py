"""What is trained when little is said: the recipe and the run's name, for command line and notebooks alike."""

from __future__ import annotations

import torch

from s8lib.data.cifar100 import Cifar100
from s8lib.data.synthetic import SYNTHETIC
from s8lib.machine.device import pick_device
from s8lib.presets import PRESETS, QUICK, SEED_100
from s8lib.recipe import Recipe, RecipeError


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


def run_name(recipe: Recipe, data: Cifar100) -> str:
    """The name of a run's folder: the same for the same recipe, network, kind of data and seed."""
    stand_in = f"-{SYNTHETIC}" if data.source.startswith(SYNTHETIC) else ""
    return f"{recipe.name}-{recipe.model}{stand_in}-seed{recipe.seed}"
