"""The networks: WideResNet (arXiv:1605.07146), the ResNet-42 of the seed's architecture section, and ResNet-11."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from s8lib.models import architectures
from s8lib.models.network import Config, Network
from s8lib.models.weights import ModelError
from s8lib.validation import check

WHITENING_EPS = 5e-4  # added to the variance of a patch along each direction
LARGEST = 2e9  # parameters, 8 GB of them


class WideResNet(architectures.WideResNet, Network):
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
        config = {"depth": depth, "widen_factor": widen_factor, "num_classes": num_classes, "dropout": dropout}
        self.config = check(Config, config, ModelError)
        self.name = f"wrn-{depth}-{widen_factor}"
        blocks = (depth - 4) // 6
        parameters = 96_768 * blocks * widen_factor**2  # the convolutions' nearly: 18 * 16**2 * (1 + 2**2 + 4**2)
        if parameters > LARGEST:
            raise ModelError(f"{self.name} would have {parameters:.1e} parameters: the most is {LARGEST:.0e}")
        super().__init__(depth, widen_factor, num_classes, dropout)

    def set_dropout(self, p: float) -> None:
        for module in self.modules():
            if isinstance(module, architectures.WideBlock):
                module.dropout.p = p


class ResNet42(architectures.ResNet42, Network):
    """The seed's documented network: 5+5+5+5 basic blocks at 64-128-256-512, 30,032,292 parameters.

    Args:
        num_classes: width of the output, [N, num_classes] logits for [N, 3, 32, 32] images.
        dropout: probability before the linear layer; no schedule touches it.
    Raises:
        ModelError: for a value out of bounds.
    """

    model_type = "resnet-42"

    def __init__(self, num_classes: int = 100, dropout: float = 0.512) -> None:
        self.config = check(Config, {"num_classes": num_classes, "dropout": dropout}, ModelError)
        self.name = self.model_type
        super().__init__(num_classes, dropout)


class ResNet11(architectures.ResNet11, Network):
    """A network of 8.6 million parameters that learns in a few epochs.

    In the line of D. Page's ResNet-9 (DAWNBench, 2018) and of K. Jordan's network for CIFAR-10 (arXiv:2404.00498):
    a fixed 2x2 convolution that whitens the patches of the training images, three groups of three convolutions
    that begin as the identity, global max and mean, a linear layer.

    Args:
        num_classes: width of the output, [N, num_classes] logits for [N, 3, 32, 32] images.
    """

    model_type = "resnet-11"

    def __init__(self, num_classes: int = 100) -> None:
        self.config, self.name = check(Config, {"num_classes": num_classes}, ModelError), self.model_type
        super().__init__(num_classes)

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
