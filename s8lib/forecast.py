"""How long a run will take, from what its first steps took: said before it and after each epoch."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np

from s8lib.machine.progress import in_notebook
from s8lib.presets import QUICK, REACHED
from s8lib.recipe import Recipe, RecipeError

LONG = 20 * 60  # seconds, from which on it is worth to say what would be shorter


def seconds_left(recipe: Recipe, done: int, like: int, seconds: float) -> float:
    """What the epochs after `done` take if epoch `like` (from 0) took `seconds`: small images take less."""
    return seconds * _whole_epochs(recipe, done) / (recipe.at(like).image_size / 32) ** 2


def _whole_epochs(recipe: Recipe, done: int) -> float:
    """How many epochs of 32x32 images the pixels of the epochs after `done` are worth."""
    return sum((recipe.at(epoch).image_size / 32) ** 2 for epoch in range(done, recipe.epochs))


def in_words(seconds: float) -> str:
    """A duration, to the precision that a forecast has: `40 s`, `12 min`, `2 h 20 min`."""
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60 // 10 * 10} min"


def until(seconds: float) -> str:
    """The clock time in so many seconds: `until 14:05`, and of which day, if not today."""
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    days = (end.date() - now.date()).days
    return f"until {end:%H:%M}" + (f" in {days} days" if days > 1 else " tomorrow" if days else "")


def _longest(recipe: Recipe, duration: Callable[[Recipe], float]) -> int:
    """The most epochs of the recipe, at most its own, whose duration is at most LONG, or 0."""
    about = math.floor(recipe.epochs * LONG / duration(recipe))
    with contextlib.suppress(RecipeError):  # what is set to the extreme cannot be shortened
        for epochs in range(min(recipe.epochs, about + 2), 0, -1):
            if duration(recipe.stretched(epochs / recipe.epochs)) <= LONG:
                return epochs
    return 0


def forecast(recipe: Recipe, done: int, step: float, images: int, test_images: int) -> str:
    """A line for people: how long the epochs after `done` will take, and what would be shorter.

    Args:
        step: seconds of a step of the next epoch, without the optimizer's part.
        images: that an epoch trains on; `test_images` are then measured, at a third of the cost of training.
    """
    full = step / recipe.batch_size / (recipe.at(done).image_size / 32) ** 2  # seconds an image

    def duration(recipe: Recipe, done: int = 0) -> float:
        trained = _whole_epochs(recipe, done) * (images - images % recipe.batch_size) * 1.1
        return full * (trained + (recipe.epochs - done) * test_images / 3)

    seconds, shorter = duration(recipe, done), ""
    if seconds > LONG and not done:
        if recipe.model != QUICK.model:
            shorter = "; the recipe quick shows a result much sooner"
        elif epochs := _longest(of := recipe if recipe.epochs <= QUICK.epochs else QUICK, duration):
            setting = f"EPOCHS = {epochs}" if in_notebook() else f"--epochs {epochs}"
            if of is not recipe:
                setting = ('PROFILE = "quick", ' if in_notebook() else "--recipe quick ") + setting
            length = f"{epochs} epoch{'s' * (epochs > 1)} ({setting})"
            shorter = f"; a new run of {length} would end within 20 min"
            as_measured = dataclasses.replace(of, seed=QUICK.seed) == QUICK and images == 50_000
            if as_measured and epochs >= min(REACHED):
                shorter += f", at about {np.interp(epochs, [*REACHED], [*REACHED.values()]):.0f}%"
    again = " Interrupted, it goes on when it is started again." if seconds > LONG else ""
    goes_on = f"goes on after epoch {done}: " if done else ""
    return f"{goes_on}about {in_words(seconds)}, {until(seconds)}{shorter}.{again}"
