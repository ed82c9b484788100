"""The recipes that have a name."""

from __future__ import annotations

import dataclasses

from s8lib.recipe import Recipe

SEED_100 = Recipe()
SEED_200 = dataclasses.replace(SEED_100.stretched(2), name="seed-200")
# Tuned on two CPU cores; README has the measured accuracy and minutes.
QUICK = Recipe(
    name="quick",
    model="wrn-16-2",
    epochs=9,
    phase1_epochs=6,
    batch_size=128,
    lr_peak=0.2,
    lr_floor=0.0,
    warmup_epochs=1,
    cycle_epochs=9,
    nesterov=True,
    weight_decay=5e-4,
    dropout=(0.0, 0.0),
    mixup_alpha=(0.0, 0.0),
    augmentation=("light", "light"),
    image_size=(24, 32),
    patience=None,
)
PRESETS = {recipe.name: recipe for recipe in (SEED_100, SEED_200, QUICK)}
