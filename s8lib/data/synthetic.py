"""A made-up stand-in for CIFAR-100, for tests and offline machines, and when it takes that place."""

import os
from pathlib import Path

import torch
from torch import Tensor

from s8lib.data.cifar100 import Cifar100, DataError, Split, at_hand, load_cifar100
from s8lib.data.download import find
from s8lib.data.pictures import class_folders, load_folder
from s8lib.machine.progress import tell
from s8lib.validation import user_path

SYNTHETIC = "synthetic"  # names the stand-in where a folder is asked for
CLASSES, SUPERCLASSES = 100, 20
PER_SUPERCLASS = CLASSES // SUPERCLASSES
CANVAS, CELL = 48, 8  # pixels: a pattern is larger than the crops it gives; its grid has a point every 8


def choose_data(where: str | Path | None = None, *, may_stand_in: bool = False, download: bool = True) -> Cifar100:
    """The data in the folder `where`, else in $S8_DATA, the cache or from a download; see `load_cifar100`.

    One of your own pictures, `train/CLASS/` and `test/CLASS/`, is read by `load_folder`.
    Either may say `synthetic` instead of a folder: the stand-in, which shows that everything works but nothing
    about CIFAR-100. With `may_stand_in` it also takes the place, loudly, of a download that fails; files that
    are there and damaged stay an error.
    """
    named = (os.environ.get("S8_DATA") or None) if where is None else str(where)
    if named != SYNTHETIC:
        if named and holds_own_pictures(named):
            return load_folder(named)
        try:
            return load_cifar100(where, download=download and where is None)
        except DataError as error:
            if named is not None or not may_stand_in or at_hand():
                raise
            tell(
                f"NOTE: {error}\nNOTE: training on the SYNTHETIC stand-in instead. It "
                "shows that everything works; its accuracy says nothing about CIFAR-100."
            )
    return synthetic_cifar100(train=1600, test=500)  # `quick` needs under two minutes for these


def holds_own_pictures(folder: str | Path) -> bool:
    """Whether `folder` is one for `load_folder`: it holds other folders and no file of CIFAR-100."""
    cifar100 = find(user_path(folder)).values()
    return bool(class_folders(user_path(folder))) and not any(map(os.path.isfile, cifar100))


def synthetic_cifar100(seed: int = 0, train: int = 5000, test: int = 1000) -> Cifar100:
    """Draw `train` + `test` images of 100 classes, balanced within one image, in about a second.

    A class is a smooth colour pattern, 5/8 of it shared with the four others of its superclass (class // 5).
    An image is a random crop of it, mirrored or not, under another smooth layer, a change of brightness and
    contrast, and noise. All of it is integer arithmetic, so a seed gives the same bytes on every machine.
    Classes depend on `seed` alone, test images on `seed` and `test`; torch's global generator is untouched.

    Returns a `Cifar100` with images [N, 3, 32, 32] uint8. Raises DataError for an empty split.
    """
    if min(train, test) < 1:
        raise DataError(f"each synthetic split needs at least one image; got train={train}, test={test}.")
    generator = torch.Generator().manual_seed(seed)
    shared = _smooth(SUPERCLASSES, generator).repeat_interleave(PER_SUPERCLASS, dim=0)
    patterns = (5 * shared + 3 * _smooth(CLASSES, generator)) >> 3
    layers = _smooth(64, generator)
    test_split = _draw(test, patterns, layers, generator)  # first, so that it does not depend on `train`
    return Cifar100(
        train=_draw(train, patterns, layers, generator),
        test=test_split,
        classes=tuple(f"synthetic {c:02d}" for c in range(CLASSES)),
        superclasses=tuple(f"synthetic superclass {s:02d}" for s in range(SUPERCLASSES)),
        name=f"{SYNTHETIC}, seed {seed}",
    )


def _integers(low: int, high: int, *shape: int, generator: torch.Generator) -> Tensor:
    """int16 in [low, high]: half the memory traffic of int32, and every product below stays under 2**15."""
    return torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int16)


def _smooth(n: int, generator: torch.Generator) -> Tensor:
    """`n` random colour fields [n, 3, CANVAS, CANVAS] in 0..255: a random grid, bilinearly interpolated."""
    points = CANVAS // CELL + 1
    pixel = torch.arange(CANVAS)
    weights = torch.zeros(CANVAS, points, dtype=torch.int64)
    weights[pixel, pixel // CELL] = CELL - pixel % CELL
    weights[pixel, pixel // CELL + 1] = pixel % CELL
    grid = _integers(0, 255, n, 3, points, points, generator=generator).long()
    return ((weights @ grid @ weights.T) // CELL**2).to(torch.int16)


def _draw(n: int, patterns: Tensor, layers: Tensor, generator: torch.Generator) -> Split:
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % CLASSES
    images = 3 * _crops(patterns, labels, generator)
    images += _crops(layers, torch.randint(len(layers), (n,), generator=generator), generator)
    images >>= 2
    contrast = _integers(40, 88, n, 1, 1, 1, generator=generator)  # in 1/64: x0.63 .. x1.38
    brightness = _integers(96, 160, n, 1, 1, 1, generator=generator)
    images = (((images - 128) * contrast) >> 6) + brightness
    images += _integers(-32, 32, *images.shape, generator=generator)
    return Split(images.clamp(0, 255).to(torch.uint8), labels, labels // PER_SUPERCLASS)


def _crops(canvases: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
    """A crop of canvases[which[i]] for each i, randomly placed, mirrored half of the time: [N, 3, 32, 32]."""
    n, span = len(which), torch.arange(32)
    top, left = torch.randint(CANVAS - 32 + 1, (2, n, 1), generator=generator)
    mirrored = torch.randint(2, (n, 1), generator=generator).bool()
    rows = top + span
    columns = left + torch.where(mirrored, 31 - span, span)
    channels = torch.arange(3)[:, None, None]
    return canvases[which[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]
