"""What is on a picture: names and probabilities for images of any size and kind."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from s8lib.data.augment import SIDE
from s8lib.data.cifar100 import CLASSES, SUPERCLASS_OF
from s8lib.metrics import predict_logits
from s8lib.models.weights import ModelError
from s8lib.validation import BadInput

# `prepare` in words. A whole square is kept rather than squeezed: a squeezed car is no longer the shape of a car.
PREPARATION = (
    "turned upright as its EXIF tag says, laid on white where it is transparent, converted to RGB, cropped to the "
    f"largest square in its middle and resized to {SIDE}x{SIDE} with Pillow's antialiased bicubic filter"
)


class ImageError(BadInput):
    """Something that is no image, or none that can be read; the message says which one."""


class Guess(NamedTuple):
    """A class and its probability, in 0..1."""

    name: str
    probability: float

    @property
    def superclass(self) -> str | None:
        """The superclass of CIFAR-100 that the class is in; None for a class that CIFAR-100 does not have."""
        return SUPERCLASS_OF.get(self.name)


def predict(model: nn.Module, images: Any, classes: Sequence[str] = CLASSES, top: int = 5) -> list[list[Guess]]:
    """The `top` likeliest classes of each image, likeliest first, in float32 on the device the model is on.

    Args:
        model: its training mode is restored.
        images: one image or several of them, as `prepare` takes them.
        classes: the names of the model's outputs, in their order.
    Raises:
        ImageError: naming the image that cannot be read.
        ModelError: the model has another number of outputs than there are names.
        ValueError: `top` is no whole number of at least 1.
    """
    if not isinstance(top, int) or top < 1:
        raise ValueError(f"top = {top!r}: it must be a whole number of at least 1")
    batch = prepare(images)
    if len(batch) == 0:
        return []
    probabilities = predict_logits(model, batch, precision="fp32").softmax(1)
    if probabilities.shape[1] != len(classes):
        raise ModelError(
            f"the model tells {probabilities.shape[1]} classes apart and there are {len(classes)} names: "
            "pass classes= with a name for each output"
        )
    best = probabilities.topk(min(top, len(classes)))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[Guess(classes[i], p) for i, p in zip(*row, strict=True)] for row in rows]


def prepare(images: Any) -> Tensor:
    """Images as the networks see them, [N, 3, 32, 32] uint8: each one made so by `PREPARATION`.

    An image of 32x32 opaque RGB pixels stays as it is.

    Args:
        images: a file's path, a PIL image, a NumPy array [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA) of
            uint8, a tensor [C, H, W] of uint8; or any number of them, in a list or along a first axis.
    Raises:
        ImageError: naming the image that cannot be read.
    """
    out = []
    for index, item in enumerate(_one_by_one(images)):
        try:
            out.append(torch.from_numpy(np.array(_fit(item))).permute(2, 0, 1))
        # What Pillow answers a broken file with, or one of more pixels than it cares to unpack.
        except (OSError, ValueError, SyntaxError, NotImplementedError, MemoryError, struct.error,
                Image.DecompressionBombError) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ImageError(f"image {index} cannot be used: {reason}") from error
    return torch.stack(out) if out else torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)


def _one_by_one(images: Any) -> Iterable[Any]:
    if isinstance(images, np.ndarray | Tensor):
        return images if images.ndim > 3 else [images]
    is_one = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable)
    return [images] if is_one else images


def _fit(item: Any) -> Image.Image:
    """`PREPARATION` of a path, a picture, an array or a tensor."""
    if isinstance(item, str | os.PathLike):
        with Image.open(item) as opened:
            return _fit(opened)
    image = item if isinstance(item, Image.Image) else Image.fromarray(_pixels(item))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode is {image.mode}, with more than 8 bits a colour; save it as an 8-bit image")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)


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
