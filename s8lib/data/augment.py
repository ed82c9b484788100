"""Augmentation by the batch, on whatever device the images are, and MixUp.

`draw` makes an epoch's random numbers at once, on the CPU; `apply` is a pure function of images and draws. So
the data is the same on any device, after a resume and for any number of ranks, and a step never waits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s8lib.recipe import POLICIES, Policy

SIDE = 32  # pixels, of every CIFAR image
MEAN = (0.5071, 0.4865, 0.4409)  # of the CIFAR-100 training set, for pixels in 0..1
STD = (0.2673, 0.2564, 0.2762)


@dataclass(frozen=True)
class Draws:
    """The random numbers of n images; what is not active holds the value that changes nothing."""

    matrix: Tensor  # [n, 2, 3] float32, `warp_matrix`
    brightness: Tensor  # [n] float32, a factor
    contrast: Tensor  # [n] float32, a factor
    hsv: Tensor  # [n, 3] float32, shifts in OpenCV's 8-bit units
    hole: Tensor  # [n, 2] int64, top row and left column of the hole; SIDE, outside the image, for none

    def __getitem__(self, rows: slice | Tensor) -> "Draws":
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Draws":
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        return Draws(*(change(getattr(self, field.name)) for field in fields(self)))


def draw(n: int, policy: Policy, generator: torch.Generator | None = None, flip: Tensor | None = None) -> Draws:
    """All random numbers for n images, on the generator's device (without one: the global generator, CPU).

    `flip`, [n] bool, is taken in place of those drawn.
    """
    device = torch.device("cpu") if generator is None else generator.device

    def happens(p: float) -> Tensor:
        return torch.rand(n, generator=generator, device=device) < p

    def spread(active: Tensor, width: float) -> Tensor:
        return torch.where(active, (2 * torch.rand(n, generator=generator, device=device) - 1) * width, 0.0)

    drawn, moved, lit = happens(policy.flip_p), happens(policy.affine_p), happens(policy.brightness_contrast_p)
    tinted, cut = happens(policy.hsv_p), happens(policy.cutout_p)
    shift = torch.stack([spread(moved, policy.shift * SIDE), spread(moved, policy.shift * SIDE)])
    shift_x, shift_y = shift.round() if policy.whole_pixels else shift
    scale, angle = 1 + spread(moved, policy.scale), spread(moved, policy.rotate)
    tint = [spread(tinted, width) for width in (policy.hue, policy.saturation, policy.value)]
    corner = torch.randint(SIDE - policy.cutout_size + 1, (n, 2), generator=generator, device=device)
    brightness, contrast = (1 + spread(lit, width) for width in (policy.brightness, policy.contrast))
    return Draws(
        matrix=warp_matrix(drawn if flip is None else flip, shift_x, shift_y, scale, angle),
        brightness=brightness,
        contrast=contrast,
        hsv=torch.stack(tint, dim=1),
        hole=torch.where(cut[:, None], corner, SIDE),
    )


def warp_matrix(flip: Tensor, shift_x: Tensor, shift_y: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
    """[n, 2, 3] float32: from an output pixel (x, y, 1) to its source pixel, both in pixels from the centre.

    The forward motion is torchvision's: mirror left to right, then rotate clockwise by `angle` degrees and
    scale about the centre, then shift right and down by pixels. All arguments are [n]; `flip` is bool.
    """
    radians = angle * (math.pi / 180)
    cos, sin = radians.cos() / scale, radians.sin() / scale
    x = torch.stack([cos, sin, -(cos * shift_x + sin * shift_y)], dim=1)
    y = torch.stack([-sin, cos, sin * shift_x - cos * shift_y], dim=1)
    return torch.stack([torch.where(flip[:, None], -x, x), y], dim=1)


def apply(images: Tensor, draws: Draws, policy: Policy) -> Tensor:
    """[B, 3, 32, 32] uint8 -> float32 in 0..1, augmented, not yet normalised.

    `policy` is the one `draws` came from: it tells, without a look at the tensors, which work to skip.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"augmentation takes uint8 images in 0..255, not {images.dtype}")
    out = images.to(torch.float32) / 255
    if policy.flip_p or policy.affine_p:
        out = warp(out, draws.matrix)
    if policy.brightness_contrast_p:
        out = adjust_contrast((out * draws.brightness[:, None, None, None]).clamp(0, 1), draws.contrast)
    if policy.hsv_p:
        out = shift_hsv(out, draws.hsv)
    if policy.cutout_p:
        out = cutout(out, draws.hole, policy.cutout_size)
    return out


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Flip, shift, scale and rotate in one bilinear sampling with a reflect-101 border (dcb|abcd|cba)."""
    # F.affine_grid and padding_mode="reflection" with align_corners=True mean the same border, but work in
    # units of 31 pixels, and every image that stays or flips would be off by some 1e-6. In units of 32, what
    # stays, flips or moves by whole pixels comes out bit-exact.
    last = SIDE - 1
    pixels = torch.arange(SIDE, dtype=torch.float32, device=images.device) - last / 2
    per_column, per_row, offset = matrix[:, None, None].unbind(-1)  # each [B, 1, 1, 2]
    source = per_column * pixels[:, None] + (per_row * pixels[:, None, None] + (offset + last / 2))
    reflected = last - (last - source.abs()).abs()  # [B, 32, 32, 2] pixels, now all in 0..31
    grid = (reflected - last / 2) * (2 / SIDE)  # align_corners=False: -1..1 spans the pixels' outer edges
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from (factor > 1) or towards (factor < 1) the image's mean grey, ITU-R 601 luma."""
    red, green, blue = images.mean(dim=(2, 3)).unbind(1)
    grey = (1 - factor) * (0.2989 * red + 0.587 * green + 0.114 * blue)
    return (images * factor[:, None, None, None] + grey[:, None, None, None]).clamp(0, 1)


def shift_hsv(images: Tensor, shift: Tensor) -> Tensor:
    """Add [B, 3] shifts of hue (180 to the circle, wraps), saturation and value (255 to the range, clamp)."""
    d_hue, d_saturation, d_value = shift[:, :, None, None].unbind(1)
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    divisor = chroma.clamp(min=1e-8)  # a grey pixel has hue 0, as in OpenCV
    hue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(value == red, (green - blue) / divisor, hue)  # in sixths of the circle
    hue = (hue + d_hue / 30) % 6
    saturation = (chroma / value.clamp(min=1e-8) + d_saturation / 255).clamp(0, 1)
    value = (value + d_value / 255).clamp(0, 1)
    pure = torch.stack([(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()], dim=1).clamp(0, 1)
    shifted = value[:, None] + (value * saturation)[:, None] * (pure - 1)
    # There and back costs a rounding: an image without a shift keeps its own pixels.
    return torch.where((shift != 0).any(1)[:, None, None, None], shifted, images)


def cutout(images: Tensor, hole: Tensor, size: int) -> Tensor:
    """Zeros in one size x size square per image, its top row and left column given by `hole` [B, 2]."""
    offset = torch.arange(SIDE, device=images.device) - hole[:, :, None]
    inside = (offset >= 0) & (offset < size)  # [B, 2, 32]
    return images.masked_fill(inside[:, :1, :, None] & inside[:, 1:, None, :], 0)


def resize(images: Tensor, side: int) -> Tensor:
    """[B, 3, 32, 32] -> [B, 3, side, side], averaging what falls together (antialiased bilinear)."""
    if side == SIDE:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def normalize(images: Tensor) -> Tensor:
    """[B, 3, 32, 32] in 0..1 -> zero mean and unit deviation over the training set, per channel."""
    # Numbers, not tensors, of mean and deviation: a tensor made here would be a copy that a GPU waits for.
    return torch.stack([(c - m) / s for c, m, s in zip(images.unbind(1), MEAN, STD, strict=True)], dim=1)


def augment(images: Tensor, policy_name: str, generator: torch.Generator | None = None) -> Tensor:
    """Draw and apply in one call, for a look at the images: [B, 3, 32, 32] uint8 -> float32 in 0..1."""
    if policy_name not in POLICIES:
        raise ValueError(f"no augmentation policy is named {policy_name!r}; there are {', '.join(POLICIES)}")
    draws = draw(len(images), POLICIES[policy_name], generator)
    return apply(images, draws.to(images.device), POLICIES[policy_name])


def draw_mixup(n: int, alpha: float, generator: torch.Generator | None = None) -> Tensor:
    """[n] float32: one lambda ~ Beta(alpha, alpha) for each of n batches; all ones for alpha 0, no MixUp."""
    if alpha == 0:
        return torch.ones(n)
    device = torch.device("cpu") if generator is None else generator.device
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))  # torch's Beta takes no seed
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, n)).to(torch.float32)


def mixup(images: Tensor, lam: Tensor) -> Tensor:
    """lam * image + (1 - lam) * the image before it in the batch (arXiv:1710.09412); `lam` is 0-d or [1].

    Batches are permuted anew every epoch, so the pairing is uniformly random, and no image meets itself.
    """
    return lam * images + (1 - lam) * images.roll(1, 0)


def mixup_cross_entropy(
    logits: Tensor, labels: Tensor, partners: Tensor, lam: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The mean loss in nats, 0-d float32, of [B, classes] logits for images that `mixup` mixed by `lam`.

    `labels` and `partners`, [B] int64, are those of each image and of the one before it.
    """
    logits, lam = logits.float(), lam.reshape(())
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    other = F.cross_entropy(logits, partners, label_smoothing=label_smoothing)
    return lam * own + (1 - lam) * other
