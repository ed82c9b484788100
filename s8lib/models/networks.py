"""The networks: WideResNet (arXiv:1605.07146), the ResNet-42 of the seed's architecture section, and ResNet-11."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s8lib.models.dropout import Dropout
from s8lib.models.network import Config, Network
from s8lib.models.weights import ModelError
from s8lib.validation import check

LOGIT_SCALE = 0.139  # of ResNet-11
WHITENING_EPS = 5e-4  # added to the variance of a patch along each direction
LARGEST = 2e9  # parameters, 8 GB of them


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


class WideResNet(Network):
    """WideResNet-`depth`-`widen_factor` for [N, 3, 32, 32] images, normalised as `augment.normalize` does.

    Args:
        depth: 6n+4 layers for n blocks in each of the three groups.
        widen_factor: groups are 16, 32 and 64 times this wide.
        num_classes: width of the output, [N, num_classes] logits.
        dropout: probability between the two convolutions of each block.
    Raises:
        ModelError: for a depth that is not 6n+4, another value out of bounds, or more than 2 billion parameters.
    """

    model_type = "wide-resnet"

    def __init__(
        self, depth: int = 28, widen_factor: int = 10, num_classes: int = 100, dropout: float = 0.0
    ) -> None:
        super().__init__()
        config = {"depth": depth, "widen_factor": widen_factor, "num_classes": num_classes, "dropout": dropout}
        self.config = check(Config, config, ModelError)
        self.name = f"wrn-{depth}-{widen_factor}"
        blocks = (depth - 4) // 6
        parameters = 96_768 * blocks * widen_factor**2  # the convolutions' nearly: 18 * 16**2 * (1 + 2**2 + 4**2)
        if parameters > LARGEST:
            raise ModelError(f"{self.name} would have {parameters:.1e} parameters: the most is {LARGEST:.0e}")
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

    def set_dropout(self, p: float) -> None:
        for module in self.modules():
            if isinstance(module, WideBlock):
                module.dropout.p = p


class BasicBlock(nn.Module):
    """Post-activation basic block (arXiv:1512.03385); a 1x1 convolution + BN shortcut where shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()  # a module, so that torchsummary counts its output as the seed's figures do
        self.shortcut = nn.Sequential()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet42(Network):
    """The seed's documented network: 5+5+5+5 basic blocks at 64-128-256-512, 30,032,292 parameters.

    Args:
        num_classes: width of the output, [N, num_classes] logits for [N, 3, 32, 32] images.
        dropout: probability before the linear layer; no schedule touches it.
    Raises:
        ModelError: for a value out of bounds.
    """

    model_type = "resnet-42"

    def __init__(self, num_classes: int = 100, dropout: float = 0.512) -> None:
        super().__init__()
        self.config = check(Config, {"num_classes": num_classes, "dropout": dropout}, ModelError)
        self.name = self.model_type
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
        if self.conv.kernel_size == (2, 2):
            x = F.pad(x, (1, 0, 1, 0))  # as many pixels out as in
        x = F.silu(self.bn(F.max_pool2d(self.conv(x), 2)))
        return x + F.silu(self.bn_b(self.conv_b(F.silu(self.bn_a(self.conv_a(x))))))


class ResNet11(Network):
    """A network of 8.6 million parameters that learns in a few epochs.

    In the line of D. Page's ResNet-9 (DAWNBench, 2018) and of K. Jordan's network for CIFAR-10 (arXiv:2404.00498):
    a fixed 2x2 convolution that whitens the patches of the training images, three groups of three convolutions
    that begin as the identity, global max and mean, a linear layer.

    Args:
        num_classes: width of the output, [N, num_classes] logits for [N, 3, 32, 32] images.
    """

    model_type = "resnet-11"

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        config = {"model_type": self.model_type, "num_classes": num_classes}
        self.config, self.name = check(Config, config, ModelError), self.model_type
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
        return self.fc(x.amax((2, 3)) + x.mean((2, 3))) * LOGIT_SCALE

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Whiten the 2x2 patches of `images`, unless these are weights that have been trained."""
        if self.whiten.weight.any():
            return
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + WHITENING_EPS).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def build_model(name: str, num_classes: int = 100, dropout: float = 0.0, seed: int | None = None) -> Network:
    """Build `wrn-D-K`, `resnet-42` or `resnet-11` by name, with fresh weights.

    Args:
        dropout: inside the blocks of a WideResNet; the others have none there, and `resnet-42` keeps its own.
        seed: makes the weights a function of it and leaves the global random state alone.
    Raises:
        ModelError: for a name that is neither, or a value out of bounds.
    """
    wide = re.fullmatch(r"wrn-([0-9]{1,9})-([0-9]{1,9})", str(name))
    if not wide and name not in ("resnet-42", "resnet-11"):
        raise ModelError(
            f"there is no model {name!r}: use resnet-42, resnet-11, or wrn-D-K for a WideResNet such as wrn-28-10"
        )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if wide:
            return WideResNet(int(wide[1]), int(wide[2]), num_classes, dropout)
        check(Config, {"dropout": dropout}, ModelError)
        return ResNet42(num_classes) if name == "resnet-42" else ResNet11(num_classes)


def load_model(source: str | Path, revision: str | None = None, device: str = "cpu") -> Network:
    """The network saved in a folder or a Hub repository, whichever kind it is, in eval mode.

    Raises:
        ModelError: as `Network.from_pretrained`.
    """
    return Network.from_pretrained(source, revision=revision, map_location=device)


def _dirac(in_channels: int, out_channels: int, side: int) -> nn.Conv2d:
    """A convolution that starts by passing on its input, in as many channels as there are."""
    conv = nn.Conv2d(in_channels, out_channels, side, padding=side // 2 if side % 2 else 0, bias=False)
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
