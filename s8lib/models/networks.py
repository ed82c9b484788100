"""The two networks: WideResNet (arXiv:1605.07146) and the ResNet-42 of the seed's architecture section.

Both are saved as `config.json` + `model.safetensors` and loaded with `from_pretrained`, always strictly.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn
from torch.nn import functional as F

from s8lib.models.weights import CONFIG, SAFETENSORS, ModelError, load_strictly, read_safetensors


class Network(nn.Module, PyTorchModelHubMixin):
    """What both networks share: their name, their dropout knob, and strict loading.

    `from_pretrained(folder_or_repo)` returns the network in eval mode with exactly the saved weights.
    The mixin's own default is not strict: it leaves missing weights at random values without a word.
    """

    name: str
    config: dict[str, Any]

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability inside every block, in place."""
        for module in self.modules():
            if isinstance(module, WideBlock):
                module.dropout.p = p

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **init_args: Any,
    ) -> Network:
        if not strict:
            raise ModelError("strict=False would leave missing weights at random values: weights load strictly")
        file = _file_of(
            model_id,
            SAFETENSORS,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        weights = read_safetensors(file, str(map_location))
        model = cls(**init_args).to(map_location)
        load_strictly(model, weights, str(file))
        return model.eval()


class WideBlock(nn.Module):
    """Pre-activation block B(3,3) with dropout between its two convolutions (section 2.4 of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
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


class WideGroup(nn.Module):
    """The blocks of one width; the first one strides and widens."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            WideBlock(in_channels, out_channels, stride, dropout),
            *(WideBlock(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Network):
    """WideResNet-`depth`-`widen_factor` for [N, 3, 32, 32] images, normalised as `augment.normalize` does.

    Args:
        depth: 6n+4 layers for n blocks in each of the three groups.
        widen_factor: groups are 16, 32 and 64 times this wide.
        num_classes: width of the output, [N, num_classes] logits.
        dropout: probability between the two convolutions of each block.
    Raises:
        ModelError: for a depth that is not 6n+4, or a width or class count below 1.
    """

    def __init__(
        self, depth: int = 28, widen_factor: int = 10, num_classes: int = 100, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ModelError(f"depth = {depth}: a WideResNet has 6n+4 layers, such as 10, 16, 22, 28 or 40")
        if widen_factor < 1:
            raise ModelError(f"widen_factor = {widen_factor}: must be at least 1")
        _check_classes(num_classes)
        self.name = f"wrn-{depth}-{widen_factor}"
        self.config = {
            "depth": depth,
            "widen_factor": widen_factor,
            "num_classes": num_classes,
            "dropout": dropout,
        }
        blocks = (depth - 4) // 6
        narrow, middle, wide = (width * widen_factor for width in (16, 32, 64))
        # Module names are those of the common public implementations, so their weights fit.
        self.conv1 = _conv3x3(3, 16, 1)
        self.block1 = WideGroup(blocks, 16, narrow, 1, dropout)
        self.block2 = WideGroup(blocks, narrow, middle, 2, dropout)
        self.block3 = WideGroup(blocks, middle, wide, 2, dropout)
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
    """

    def __init__(self, num_classes: int = 100, dropout: float = 0.512) -> None:
        super().__init__()
        _check_classes(num_classes)
        self.name = "resnet-42"
        self.config = {"num_classes": num_classes, "dropout": dropout}
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


def build_model(
    name: str, num_classes: int = 100, dropout: float = 0.0, seed: int | None = None
) -> WideResNet | ResNet42:
    """Build `wrn-D-K` or `resnet-42` by name, with fresh weights.

    Args:
        dropout: inside the blocks; `resnet-42` has none there and keeps its own before the head.
        seed: makes the weights a function of it and leaves the global random state alone.
    Raises:
        ModelError: for a name that is neither.
    """
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if not wide and name != "resnet-42":
        raise ModelError(
            f"there is no model {name!r}: use resnet-42, or wrn-D-K for a WideResNet such as wrn-28-10"
        )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if wide:
            return WideResNet(int(wide[1]), int(wide[2]), num_classes, dropout)
        return ResNet42(num_classes)


def load_model(source: str | Path, revision: str | None = None, device: str = "cpu") -> WideResNet | ResNet42:
    """The network saved in a folder or a Hub repository, whichever of the two kinds it is, in eval mode.

    Raises:
        ModelError: if there is no config.json, or the weights do not fit it.
    """
    file = _file_of(str(source), CONFIG, revision=revision)
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read the model's configuration {file}: {error}") from error
    kind: type[WideResNet] | type[ResNet42] = WideResNet if "depth" in config else ResNet42
    return kind.from_pretrained(str(source), revision=revision, map_location=device)


def _file_of(source: str, name: str, **hub_options: Any) -> Path:
    """The file `name` of a saved model: in the folder `source`, or fetched from the Hub repository `source`."""
    if Path(source).is_dir():
        return Path(source, name)
    try:
        return Path(hf_hub_download(source, name, **hub_options))
    except (OSError, ValueError) as error:  # what the client's own errors are, whichever its major version
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{source} is no folder here and {name} cannot be had from the Hub: {reason}") from error


def _conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _basic_group(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(4)))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _check_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ModelError(f"num_classes = {num_classes}: must be at least 1")
