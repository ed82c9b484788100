"""The recipes that have a name, the choice of one, and the name of its run."""

import dataclasses
import re
from typing import TYPE_CHECKING

from s8lib.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    import torch

    from s8lib.data.cifar100 import Cifar100

SEED_100 = Recipe()
SEED_200 = dataclasses.replace(SEED_100.stretched(2), name="seed-200")
# Tuned on two CPU cores; README has the measured accuracy and minutes.
QUICK = Recipe(
    name="quick", model="resnet-11", batch_size=512, optimizer="muon",
    epochs=9, phase1_epochs=5, patience=None,
    lr_start=0.01, lr_peak=0.7, lr_floor=0.0, lr_final=0.0, warmup_epochs=2.25, cycle_epochs=9, anneal="linear",
    nesterov=True, weight_decay=5e-4, label_smoothing=0.25, dropout=(0.0, 0.0), mixup_alpha=(0.0, 0.0),
    augmentation=("flip-crop", "flip-crop"), image_size=(24, 32),
)  # fmt: skip
# Percent of the test set after a whole run of `quick` of so many epochs, seed 0: results/quick-*.
REACHED = {1: 45.16, 3: 67.07, 9: 75.17, 20: 77.27}
QUICK_LONG = dataclasses.replace(QUICK.stretched(4), name="quick-long")
PRESETS = {recipe.name: recipe for recipe in (SEED_100, SEED_200, QUICK, QUICK_LONG)}


def choose_recipe(
    name: str = "auto",
    *,
    model: str | None = None,
    seed: int | None = None,
    epochs: int | None = None,
    device: "str | torch.device | None" = None,
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
        from s8lib.machine.device import pick_device  # here: torch takes seconds to load

        recipe = QUICK if pick_device(device).type == "cpu" else SEED_100
    elif name in PRESETS:
        recipe = PRESETS[name]
    elif name.endswith(".json"):
        recipe = Recipe.load(name)
    else:
        raise RecipeError(f"there is no recipe {name!r}: use auto, {', '.join(PRESETS)}, or a recipe.json")
    if epochs is not None:
        recipe.with_settings({"epochs": epochs, "phase1_epochs": 0, "warmup_epochs": 0})  # may refuse `epochs`
        recipe = recipe.stretched(epochs / recipe.epochs)
    given = {"model": model, "seed": seed}
    return recipe.with_settings({name: value for name, value in given.items() if value is not None})


def run_name(recipe: Recipe, data: "Cifar100") -> str:
    """The name of a run's folder: the same for the same recipe, network, kind of data and seed."""
    name, comma, _ = data.name.partition(",")  # such as `synthetic, seed 0`; CIFAR-100's is without a comma
    kind = "-" + re.sub(r"[^\w.-]+", "-", name)[:60] if comma else ""
    return f"{recipe.name}-{recipe.model}{kind}-seed{recipe.seed}"
