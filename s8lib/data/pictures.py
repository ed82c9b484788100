"""Pictures of any size and kind as the networks see them, one by one or in a folder for each class."""

import contextlib
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from s8lib.data.augment import SIDE
from s8lib.data.cifar100 import Cifar100, Split
from s8lib.data.download import DataError
from s8lib.machine.progress import progress_bar
from s8lib.validation import BadInput, user_path

# `prepare` in words. A whole square is kept rather than squeezed: a squeezed car is no longer the shape of a car.
PREPARATION = (
    "turned upright as its EXIF tag says, laid on white where it is transparent, converted to RGB, cropped to the "
    f"largest square in its middle and resized to {SIDE}x{SIDE} with Pillow's antialiased bicubic filter"
)
# What is opened, and how such files end. Pillow knows more formats, of which one starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
HELD = 6  # without a test folder, one in so many pictures of each class is a test picture
# What Pillow answers a broken file with, or one of more pixels than it cares to unpack.
BROKEN = (
    OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, NotImplementedError, MemoryError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


class ImageError(BadInput):
    """Something that is no image, or none that can be read; the message says which one."""


def prepare(images: Any) -> Tensor:
    """Images as the networks see them, [N, 3, 32, 32] uint8: each one made so by `PREPARATION`.

    An image of 32x32 opaque RGB pixels stays as it is.

    Args:
        images: a file's path, a PIL image, a NumPy array [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA) of
            uint8, a tensor [C, H, W] of uint8; or any number of them, in a list or along a first axis.
    Raises:
        ImageError: naming the image that cannot be read, or is in none of `FORMATS`.
    """
    several = isinstance(images, Iterable) and not isinstance(images, str | os.PathLike)
    if isinstance(images, np.ndarray | Tensor):
        several = images.ndim > 3
    out = [picture(item, f"image {index}") for index, item in enumerate(images if several else [images])]
    return torch.stack(out) if out else torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)


def picture(item: Any, name: str) -> Tensor:
    """One image of those that `prepare` takes, [3, 32, 32] uint8; a file is named in errors, others are `name`."""
    try:
        if not isinstance(item, str | os.PathLike):
            return _fit(item.copy() if isinstance(item, Image.Image) else Image.fromarray(_pixels(item)))
        name = repr(str(item)[:300])
        with Image.open(user_path(item), formats=FORMATS) as opened:
            return _fit(opened)
    except UnidentifiedImageError:
        reason = f"it is none of {', '.join(FORMATS)}, or broken at its very beginning"
    except BROKEN as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
    raise ImageError(f"{name} cannot be used: {reason}")


def _fit(image: Image.Image) -> Tensor:
    """`PREPARATION` of a picture, which may be turned in place."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode is {image.mode}, with more than 8 bits a colour; save it as an 8-bit image")
    image.load()
    # Tags that a camera or an editor has damaged say nothing of the picture. Pillow turns it first and then writes
    # its tags anew, which they may stop: what is turned in place stays turned.
    with contextlib.suppress(*BROKEN):
        ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _pixels(item: Any) -> np.ndarray:
    """An array or a tensor as [H, W], [H, W, 3] or [H, W, 4] uint8."""
    if not isinstance(item, np.ndarray | Tensor):
        raise ValueError(f"{type(item).__name__} is no image; pass a path, a PIL image, an array or a tensor")
    if str(item.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"it holds {item.dtype}; use uint8 values, from 0 to 255")
    array = item if isinstance(item, np.ndarray) else item.cpu().numpy()
    if isinstance(item, Tensor) and item.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or array.ndim < 2 or array.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            f"its shape is {tuple(item.shape)}; use [H, W], [H, W, 3] or [H, W, 4], or a tensor's [3, H, W]"
        )
    return np.ascontiguousarray(array)


def load_folder(path: str | os.PathLike[str], seed: int = 0) -> Cifar100:
    """The pictures in `path`, one folder a class: `train/<class>/...` and `test/<class>/...`.

    Without `test/`, a sixth of each class, chosen by `seed`, is the test set, and `name` says so; `path` may
    then hold the classes itself. Classes are in alphabetical order, and each is its own superclass. Every picture
    is prepared as `predict` prepares it; hidden files, and those without the ending of a picture, are left out.

    Raises:
        DataError: less than two classes, a class without pictures, or one in `test/` that `train/` lacks.
        ImageError: naming the picture that cannot be used.
    """
    folder = user_path(path).absolute()
    train, test = folder / "train", folder / "test"
    tested = os.path.isdir(test)
    train = train if tested or os.path.isdir(train) else folder
    classes = class_folders(train)
    if len(classes) < 2:
        raise DataError(f"{str(train)[:300]} should hold a folder of pictures for each of two or more classes.")
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"{train} holds a class named {odd[0]!r}: give it a name that can be printed.")
    if unknown := sorted({*class_folders(test)} - {*classes}):
        raise DataError(f"{test} holds a class that {train} does not have: {unknown[0]!r}.")
    train_set, name = _read(train, classes, 1 if tested else 2), f"{folder.name}, {len(classes)} classes"
    if tested:
        test_set = _read(test, classes)
    else:
        held = torch.zeros(len(train_set), dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed)
        for own in ((train_set.labels == label).nonzero()[:, 0] for label in range(len(classes))):
            held[own[torch.randperm(len(own), generator=generator)[: max(1, len(own) // HELD)]]] = True
        train_set, test_set = (train_set.subset(which.nonzero()[:, 0]) for which in (~held, held))
        name += f", a sixth of each held back as test images by seed {seed}"
    return Cifar100(train_set, test_set, classes, classes, name, folder.parent)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in `folder`, but for hidden ones, in alphabetical order."""
    try:
        return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))
    except (OSError, ValueError):  # no folder, an unreadable one, a NUL in its name
        return ()


def _read(folder: Path, classes: tuple[str, ...], at_least: int = 1) -> Split:
    """The pictures in those folders of `classes` that are in `folder`, `at_least` so many in each."""
    from torchvision.datasets.folder import make_dataset  # here: it takes a second to load

    def is_picture(file: str) -> bool:
        parts = Path(file).relative_to(folder).parts  # a hidden folder may hold a picture's smaller copies
        return file.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in parts)

    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(str(folder), numbers, is_valid_file=is_picture, allow_empty=True)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    for name in class_folders(folder):
        if (count := int((labels == numbers[name]).sum())) < at_least:
            what = f"{folder / name} holds {('no picture', 'only one')[count]} (they end in {', '.join(SUFFIXES)})"
            raise DataError(f"{what}: bring {at_least} or more.")
    if not found:
        raise DataError(f"{folder} should hold a folder of pictures for each class, as train/ does.")
    with ThreadPoolExecutor() as pool:  # Pillow unpacks without Python's lock
        read = pool.map(lambda file: picture(file, file), [file for file, _ in found])
        images = [image for image, _ in zip(read, progress_bar(range(len(found)), folder.name), strict=True)]
    return Split(torch.stack(images), labels, labels)
