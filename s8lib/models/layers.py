"""Layers that compute on a CPU what torch's own do, in less time; elsewhere they are torch's own."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 2**16  # of the random numbers of `Dropout`
LARGEST_MAP, LEAST_BATCH = 8, 64  # pixels a side and images: larger maps and smaller batches are left to torch
POINTS = (0, 1, -1, 0.5, -0.5, 2)  # and infinity: more of them would cost digits


class Dropout(nn.Dropout):
    """`nn.Dropout`, but on a CPU for [N, C, H, W] with masks of 16-bit random numbers; `p` is rounded to 1/65536.

    torch draws its Bernoulli masks there one by one, in a thread: 40% of a step of WRN-16-2. Four elements of a
    mask come from one 64-bit number of the same global random state, and depend on no memory layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = min(round(self.p * LEVELS), LEVELS - 1)
        if not (x.is_cpu and self.training and dropped):
            return super().forward(x)
        n, channels, height, width = x.shape
        random = (
            torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
            .random_(-(2**63), None)
            .view(torch.int16)
        )
        least = dropped - LEVELS // 2  # of the numbers that keep their element
        # A comparison and its conversion would take three times as long: torch does not vectorise booleans.
        kept = random[: x.numel()].clamp_(least - 1, least).sub_(least - 1).to(x.dtype)
        noise = kept.mul_(LEVELS / (LEVELS - dropped)).view(n, height, width, channels).permute(0, 3, 1, 2)
        return x * noise


class Conv2d(nn.Conv2d):
    """A convolution of stride 1 by `side` x `side` filters, without bias; odd sides are padded to keep the size.

    On a CPU in fp32 it convolves small maps with a third of the products between channels. It does so for 64
    images or more, in training and under `torch.inference_mode`; elsewhere it is `nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(in_channels, out_channels, side, padding=side // 2 if side % 2 else 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The compiler and what exports a network know nn.Conv2d, not this.
        ours = not torch.compiler.is_compiling() and (self.training or torch.is_inference_mode_enabled())
        fp32 = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        small = self.kernel_size != (1, 1) and x.shape[-2] == x.shape[-1] <= LARGEST_MAP
        if ours and fp32 and small and len(x) >= LEAST_BATCH:
            return _ToomCook.apply(x, self.weight, self.padding[0])
        return super().forward(x)


class _ToomCook(torch.autograd.Function):
    """Convolution by the values of polynomials at a few points (S. Winograd; for networks arXiv:1509.09308).

    Maps [n, in, side, side] and filters [out, in, k, k] are taken to their values there, one product of matrices
    at each point mixes the channels, and the result is taken back to pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        (n, channels, side, _), (out, _, taps, _) = x.shape, weight.shape
        of_pixels, of_taps, to_pixels = ctx.matrices = _toom_cook(side, taps, padding)
        pixels = x.permute(0, 2, 3, 1).reshape(n, -1, channels)
        maps = torch.bmm(of_pixels.expand(n, -1, -1), pixels).transpose(0, 1)  # [points, n, in]
        filters = (of_taps @ weight.permute(2, 3, 0, 1).reshape(taps**2, -1)).view(-1, out, channels)
        ctx.save_for_backward(maps, filters)
        mixed = torch.bmm(maps, filters.transpose(1, 2)).transpose(0, 1)  # [n, points, out]
        side += 2 * padding + 1 - taps
        return torch.bmm(to_pixels.expand(n, -1, -1), mixed).view(n, side, side, out).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (of_pixels, of_taps, to_pixels), (maps, filters) = ctx.matrices, ctx.saved_tensors
        (_, n, channels), out = maps.shape, filters.shape[1]
        side, taps = (math.isqrt(matrix.shape[1]) for matrix in (of_pixels, of_taps))
        pixels = gradients[0].permute(0, 2, 3, 1).reshape(n, -1, out)
        mixed = torch.bmm(to_pixels.T.expand(n, -1, -1), pixels).transpose(0, 1)  # [points, n, out]
        of_maps = torch.bmm(of_pixels.T.expand(n, -1, -1), torch.bmm(mixed, filters).transpose(0, 1))
        of_filters = of_taps.T @ torch.bmm(mixed.transpose(1, 2), maps).flatten(1)
        return (
            of_maps.view(n, side, side, channels).permute(0, 3, 1, 2),
            of_filters.view(taps, taps, out, channels).permute(2, 3, 0, 1),
            None,
        )


@functools.cache
@torch.inference_mode(False)  # a training may need what an evaluation has put here
def _toom_cook(side: int, taps: int, padding: int) -> tuple[Tensor, ...]:
    """The matrices from a map's pixels to the points, from a filter's taps to them, and from them to pixels.

    Along a row, `size` outputs of a filter are the transposed product of two polynomials with `size` and `taps`
    coefficients, which is known by its values at size + taps - 1 points. A row that needs more than there are is
    done in parts.
    """
    outputs = side + 2 * padding + 1 - taps
    parts = -(-outputs // (len(POINTS) + 2 - taps))
    sizes = [(outputs + part) // parts for part in range(parts)]
    of_pixels, of_taps, to_pixels = (
        torch.zeros(sum(sizes) + parts * (taps - 1), width, dtype=torch.float64, device="cpu")
        for width in (side + 2 * padding, taps, outputs)
    )
    row = first = 0
    for size in sizes:
        points = size + taps - 1
        rows = slice(row, row + points)
        of_pixels[rows, first : first + points] = _values(points, points).inverse().T
        of_taps[rows] = _values(points, taps)
        to_pixels[rows, first : first + size] = _values(points, size)
        row, first = row + points, first + size
    of_pixels = of_pixels[:, padding : padding + side]
    return tuple(torch.kron(matrix, matrix).float() for matrix in (of_pixels, of_taps, to_pixels.T.contiguous()))


def _values(points: int, length: int) -> Tensor:
    """[points, length]: the powers below `length` of the first points; infinity, the last, has but the highest."""
    finite = torch.tensor(POINTS[: points - 1], dtype=torch.float64, device="cpu")[:, None]
    highest = torch.eye(length, dtype=torch.float64, device="cpu")[-1:]
    return torch.cat([finite ** torch.arange(length, device="cpu"), highest])


def algorithms_of(
    model: nn.Module, device: torch.device, precision: str, compiled: bool, images: int
) -> dict[str, str]:
    """How these layers of `model` train on batches of so many images: part of a training's arithmetic."""
    own = {type(module) for module in model.modules()}
    masks = "16-bit" if device.type == "cpu" and Dropout in own else "torch"
    fast = device.type == "cpu" and precision == "fp32" and not compiled and images >= LEAST_BATCH
    convolutions = {"small convolutions": "Toom-Cook" if fast else "torch"} if Conv2d in own else {}
    return {"dropout masks": masks, **convolutions}
