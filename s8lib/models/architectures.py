"""The networks as torch sees them, for [N, 3, 32, 32] images normalised as `augment.normalize` does.

This file needs torch and `layers.py` alone: with `modeling_s8lib.py` they lie beside published weights, for people
without s8lib. How a network is named, checked and saved is in `networks.py`.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Conv2d, Dropout

LOGIT_SCALE = 0.139  # of ResNet-11


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
        height, width = x.shape[2:]
        if self.conv.kernel_size == (2, 2) and (height % 2 == 0 or width % 2 == 0):
            # For as many outputs as there are pixels; of an odd number the pooling leaves the last one out.
            x = F.pad(x, (0, 1 - width % 2, 0, 1 - height % 2))
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
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # so that x's gradient comes back channels-last, as x is
        return self.fc(pixels.amax(1) + pixels.mean(1)) * LOGIT_SCALE


def _dirac(in_channels: int, out_channels: int, side: int) -> nn.Conv2d:
    """A convolution that starts by passing on its input, in as many channels as there are."""
    conv = Conv2d(in_channels, out_channels, side)
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
