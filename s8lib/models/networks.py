"""The two networks: WideResNet (arXiv:1605.07146) and the ResNet-42 of the seed's architecture section.

Both are saved as `config.json` + `model.safetensors` and loaded with `from_pretrained`, always strictly.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from pydantic import AfterValidator, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from s8lib.hub_client import one_line
from s8lib.models.weights import CONFIG, SAFETENSORS, ModelError, load_strictly
from s8lib.validation import check, read_json

LARGEST = 2e9  # parameters, 8 GB of them
HUB_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def _six_n_plus_4(depth: int) -> int:
    if depth % 6 != 4:
        raise ValueError("a WideResNet has 6n+4 layers, such as 10, 16, 22, 28 or 40")
    return depth


class Config(TypedDict, total=False):
    """What config.json may hold; other keys are ignored, as in every config of the Hub.

    `depth` and `widen_factor` are a WideResNet's alone.
    """

    depth: Annotated[int, Field(ge=10, le=1000), AfterValidator(_six_n_plus_4)]
    widen_factor: Annotated[int, Field(ge=1, le=1000)]
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Network(nn.Module, PyTorchModelHubMixin):
    """What both networks share: their name, their dropout knob, and strict loading.

    `from_pretrained(folder_or_repo)` returns the network in eval mode with exactly the saved weights.
    The mixin's own default is not strict: it leaves missing weights at random values without a word.
    """

    name: str
    config: Config

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability inside every block, in place."""
        for module in self.modules():
            if isinstance(module, WideBlock):
                module.dropout.p = p

    def refuse_other_classes(self, number: int) -> None:
        """Raise ModelError unless the network tells `number` classes apart."""
        if self.config["num_classes"] != number:
            raise ModelError(f"{self.name} has {self.config['num_classes']} classes and the data {number}")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        **options: Any,
    ) -> Self:
        """The network in a folder or a Hub repository; `options` are the mixin's, and values for the config's.

        Raises:
            ModelError: config or weights cannot be read, are out of bounds, do not fit each other, or are those
                of the other network.
        """
        if not strict:
            raise ModelError("strict=False would leave missing weights at random values: weights load strictly")
        source = str(pretrained_model_name_or_path)
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        config = read_json(Config, _file_of(source, CONFIG, **hub), ModelError)
        kind: Any = WideResNet if config.keys() & {"depth", "widen_factor"} else ResNet42
        if not issubclass(kind, cls):
            raise ModelError(f"{source} holds a {kind.__name__}, not a {cls.__name__}: use s8lib.load_model")
        with torch.device("meta"):  # takes no memory: what a config asks for need not be in the file
            model = kind(**config | options)
        file = _file_of(source, SAFETENSORS, **hub)
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read the weights {file}: {error}") from error
        load_strictly(model, weights, str(file), assign=True)
        return model.to(map_location).eval()


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

    def __init__(self, num_classes: int = 100, dropout: float = 0.512) -> None:
        super().__init__()
        self.config = check(Config, {"num_classes": num_classes, "dropout": dropout}, ModelError)
        self.name = "resnet-42"
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
        ModelError: for a name that is neither, or a value out of bounds.
    """
    wide = re.fullmatch(r"wrn-([0-9]{1,9})-([0-9]{1,9})", str(name))
    if not wide and name != "resnet-42":
        raise ModelError(
            f"there is no model {name!r}: use resnet-42, or wrn-D-K for a WideResNet such as wrn-28-10"
        )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if wide:
            return WideResNet(int(wide[1]), int(wide[2]), num_classes, dropout)
        check(Config, {"dropout": dropout}, ModelError)
        return ResNet42(num_classes)


def load_model(source: str | Path, revision: str | None = None, device: str = "cpu") -> WideResNet | ResNet42:
    """The network saved in a folder or a Hub repository, whichever of the two kinds it is, in eval mode.

    Raises:
        ModelError: as `Network.from_pretrained`.
    """
    return Network.from_pretrained(source, revision=revision, map_location=device)  # type: ignore[return-value]


def _file_of(source: str, name: str, **hub_options: Any) -> Path:
    """The file `name` of a saved model: in the folder `source`, or fetched from the Hub repository `source`."""
    if os.path.isdir(source):  # which, unlike Path, answers for a name of 5,000 letters too
        return Path(source, name)
    try:
        return Path(hf_hub_download(source, name, **hub_options))
    except (OSError, ValueError) as error:  # what the client's own errors are, whichever its major version
        raise ModelError(
            f"{source} is no folder here and {name} cannot be had from the Hub: {one_line(error)}"
        ) from error


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
