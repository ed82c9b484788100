"""How long a run will take, from what its first steps took: said before it and after each epoch."""

import math
from datetime import datetime, timedelta

from s8lib.recipe import Recipe

LONG = 20 * 60  # seconds, from which on it is worth to say what would be shorter


def seconds_left(recipe: Recipe, done: int, like: int, seconds: float) -> float:
    """What the epochs after `done` take if epoch `like` (from 0) took `seconds`: small images take less."""
    area = recipe.at(like).image_size ** 2
    return seconds * sum(recipe.at(epoch).image_size ** 2 for epoch in range(done, recipe.epochs)) / area


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


def forecast(recipe: Recipe, done: int, step: float, images: int, test_images: int, device: str) -> str:
    """A line for people: how long the epochs after `done` will take, and what would be shorter.

    Args:
        step: seconds of a step of the next epoch, without the optimizer's part.
        images: that an epoch trains on; `test_images` are then measured, at a third of the cost of training.
    """
    left, full = recipe.epochs - done, step * (32 / recipe.at(done).image_size) ** 2
    seconds = seconds_left(recipe, done, done, step * (images // recipe.batch_size) * 1.1)
    seconds += left * full * test_images / recipe.batch_size / 3
    shorter = ""
    if device == "cpu":
        epochs = math.floor(left * LONG / seconds)
        if 0 < epochs < left:
            shorter = f"; a new run of {epochs} epoch{'s' * (epochs > 1)} would end within 20 min"
    elif seconds > LONG:
        shorter = "; the recipe quick shows a result much sooner"
    again = " Interrupted, it goes on when it is started again." if seconds > LONG else ""
    goes_on = f"goes on after epoch {done}: " if done else ""
    return f"{goes_on}about {in_words(seconds)}, {until(seconds)}{shorter}.{again}"
