"""The networks as torch sees them, for [N, 3, 32, 32] images normalised as `augment.normalize` does.

This file needs torch alone: with `modeling_s8lib.py` it lies beside published weights, for people without s8lib.
How a network is named, checked and saved is in `networks.py`.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOGIT_SCALE = 0.139  # of ResNet-11
LEVELS = 2**16  # of the random numbers of `Dropout`
LARGEST_MAP, LEAST_BATCH = 8, 64  # pixels a side and images: what lies beyond, `Conv2d` leaves to torch
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
        random = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        least = dropped - LEVELS // 2  # of the numbers that keep their element
        # A comparison and its conversion would take three times as long: torch does not vectorise booleans.
        kept = random[: x.numel()].clamp_(least - 1, least).sub_(least - 1).to(x.dtype)
        noise = kept.mul_(LEVELS / (LEVELS - dropped)).view(n, height, width, channels).permute(0, 3, 1, 2)
        return x * noise


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 that convolves small maps with a third of the multiplications, on a CPU in fp32.

    It does for batches, in training and under `torch.inference_mode`: a step of ResNet-11 takes half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        # Not where the network is exported or compiled: torch knows better what it makes of its own convolutions.
        ours = (self.training or torch.is_inference_mode_enabled()) and not torch.compiler.is_compiling()
        fp32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if ours and x.is_cpu and fp32 and x.shape[-1] <= LARGEST_MAP and len(x) >= LEAST_BATCH:
            return _ToomCook.apply(x, self.weight, self.padding[0])
        return super().forward(x)


class _ToomCook(torch.autograd.Function):
    """Convolution by the values of polynomials at a few points (S. Winograd; for networks arXiv:1509.09308).

    Maps and filters [out, in, k, k] are taken to their values there, one product of matrices at each point mixes
    the channels, and the result is taken back to pixels.
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
def _toom_cook(side: int, taps: int, padding: int) -> tuple[Tensor, ...]:
    """The matrices from a map's pixels to the points, from a filter's taps to them, and from them to pixels.

    Along a row, `a` outputs of a filter are the transposed product of two polynomials with `a` and `taps`
    coefficients, which is known by its values at a + taps - 1 points. What needs more of them is done in parts.
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


def algorithms_of(model: nn.Module, device: torch.device, precision: str) -> dict[str, str]:
    """How the layers of `model` that are not torch's are computed: part of a training's arithmetic."""
    own = {type(module) for module in model.modules()} if device.type == "cpu" else set()
    fast = Conv2d in own and precision == "fp32"
    return {
        "dropout masks": "16-bit" if Dropout in own else "torch",
        "small convolutions": "Toom-Cook" if fast else "torch",
    }


class WideBlock(nn.Module):
    """Pre-activation block B(3,3) with dropout between its two convolutions (section 2.4 of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        out = self.conv1(active)
        out = self.conv2(self.dropout(F.relu(self.bn2(out))))
        return out + residual


class WideResNet(nn.Module):
    """WideResNet-`depth`-`widen_factor` (arXiv:1605.07146): logits [N, num_classes]."""

    def __init__(self, depth: int, widen_factor: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        narrow, middle, wide = (width * widen_factor for width in (16, 32, 64))
        # Module names are those of the common public implementations, so their weights fit.
        self.conv1 = _conv3x3(3, 16, 1)
        self.block1 = _wide_group(blocks, 16, narrow, 1, dropout)
        self.block2 = _wide_group(blocks, narrow, middle, 2, dropout)
        self.block3 = _wide_group(blocks, middle, wide, 2, dropout)
        self.bn1 = nn.BatchNorm2d(wide)
        self.fc = nn.Linear(wide, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class BasicBlock(nn.Module):
    """Post-activation basic block (arXiv:1512.03385); a 1x1 convolution + BN shortcut where shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()  # a module, so that torchsummary counts its output as the commission's figures do
        self.shortcut = nn.Sequential()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet42(nn.Module):
    """5+5+5+5 basic blocks at 64-128-256-512, and dropout before the linear layer: logits [N, num_classes]."""

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 64, 1)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _basic_group(64, 64, 1)
        self.layer2 = _basic_group(64, 128, 2)
        self.layer3 = _basic_group(128, 256, 2)
        self.layer4 = _basic_group(256, 512, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.fc(self.dropout(self.pool(out).flatten(1)))


class ConvGroup(nn.Module):
    """One of ResNet-11's: a convolution, max-pooling, and a residual branch of two convolutions."""

    def __init__(self, widths: tuple[int, int, int], first: int, a: int, b: int) -> None:
        super().__init__()
        before, width, middle = widths
        self.conv, self.bn = _dirac(before, width, first), _shift(width)
        self.conv_a, self.bn_a = _dirac(width, middle, a), _shift(middle)
        self.conv_b, self.bn_b = _dirac(middle, width, b), _shift(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.kernel_size == (2, 2) and x.shape[-1] % 2 == 0:
            x = F.pad(x, (0, 1, 0, 1))  # for as many outputs; of an odd side the pooling leaves the last one out
        x = F.silu(self.bn(F.max_pool2d(self.conv(x), 2)))
        return x + F.silu(self.bn_b(self.conv_b(F.silu(self.bn_a(self.conv_a(x))))))


class ResNet11(nn.Module):
    """Whitening, three groups, global max and mean, a linear layer: logits [N, num_classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.group1 = ConvGroup((24, 64, 64), first=3, a=1, b=1)
        self.group2 = ConvGroup((64, 256, 192), first=3, a=3, b=1)
        self.group3 = ConvGroup((256, 768, 512), first=2, a=3, b=3)
        self.fc = nn.Linear(768, num_classes, bias=False)
        for parameter in self.whiten.parameters():
            nn.init.zeros_(parameter)  # the weight until `start_from`
        self.whiten.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(F.silu(self.whiten(x)))))
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # so that their gradients lie in memory as they do
        return self.fc(pixels.amax(1) + pixels.mean(1)) * LOGIT_SCALE


def _dirac(in_channels: int, out_channels: int, side: int) -> nn.Conv2d:
    """A convolution that starts by passing on its input, in as many channels as there are."""
    kind = Conv2d if side > 1 else nn.Conv2d
    conv = kind(in_channels, out_channels, side, padding=side // 2 if side % 2 else 0, bias=False)
    nn.init.dirac_(conv.weight[:in_channels].data)
    return conv


def _shift(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation without a trained scale, whose statistics follow fast: a run has few epochs."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def _conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _wide_group(blocks: int, in_channels: int, out_channels: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride, dropout)
    rest = (WideBlock(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


def _basic_group(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(4)))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # where normal_ takes torch 2 s to load
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
