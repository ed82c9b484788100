"""Pictures of any size and kind as the networks see them: which files are opened, and what is made of them."""

import contextlib
import os
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from s8lib.data.augment import SIDE
from s8lib.validation import BadInput, user_path

# `prepare` in words. A whole square is kept rather than squeezed: a squeezed car is no longer the shape of a car.
PREPARATION = (
    "turned upright as its EXIF tag says, laid on white where it is transparent, converted to RGB, cropped to the "
    f"largest square in its middle and resized to {SIDE}x{SIDE} with Pillow's antialiased bicubic filter"
)
# What is opened, and how such files end. Pillow knows more formats, of which one starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
ORIENTATION, TURN = 0x0112, Image.Transpose
UPRIGHT = {
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_90,
}  # fmt: skip
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
    out = [picture(item, f"image {index}") for index, item in enumerate(_one_by_one(images))]
    return torch.stack(out) if out else torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)


def picture(item: Any, name: str) -> Tensor:
    """One image of those that `prepare` takes, [3, 32, 32] uint8; a file is named in errors, others are `name`."""
    try:
        if not isinstance(item, str | os.PathLike):
            return _fit(item if isinstance(item, Image.Image) else Image.fromarray(_pixels(item)))
        name = repr(str(item)[:300])
        with Image.open(user_path(item), formats=FORMATS) as opened:
            return _fit(opened)
    except UnidentifiedImageError:
        reason = f"it is none of {', '.join(FORMATS)}, or broken at its very beginning"
    except BROKEN as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
    raise ImageError(f"{name} cannot be used: {reason}")


def _fit(image: Image.Image) -> Tensor:
    """`PREPARATION` of a picture."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode is {image.mode}, with more than 8 bits a colour; save it as an 8-bit image")
    image.load()
    with contextlib.suppress(*BROKEN):  # what a camera or an editor has damaged there says nothing of the picture
        image = image.transpose(UPRIGHT[image.getexif()[ORIENTATION]])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _one_by_one(images: Any) -> Iterable[Any]:
    if isinstance(images, np.ndarray | Tensor):
        return images if images.ndim > 3 else [images]
    is_one = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable)
    return [images] if is_one else images


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
