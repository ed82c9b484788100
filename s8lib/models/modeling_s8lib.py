"""The networks for the Auto classes and pipelines of transformers. It is published beside the weights, with
`architectures.py` and `layers.py`; none needs s8lib, and s8lib does not need this one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .architectures import ResNet11, ResNet42, WideResNet
from .layers import Dropout  # noqa: F401  # of a local folder, older transformers copy only what this file imports


class ImageProcessor(BaseImageProcessor):
    """As s8lib prepares pictures. A standard class resizes and then crops, which can be half a pixel beside it."""

    model_input_names = ["pixel_values"]

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **_: Any) -> BatchFeature:
        """PIL images, one or a list, of any size: pixel_values [N, 3, 32, 32] float32."""
        pictures = images if isinstance(images, list | tuple) else [images]
        size = (self.crop_size["width"], self.crop_size["height"])
        fitted = [ImageOps.fit(one.convert("RGB"), size, Image.Resampling.BICUBIC) for one in pictures]
        pixels = np.stack([np.asarray(one, np.float32) for one in fitted]) / 255
        pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # sums in the same order as s8lib
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


class ForImageClassification(PreTrainedModel):
    base_model_prefix = "network"  # which the names of the published weights lack
    main_input_name = "pixel_values"
    kind: type[torch.nn.Module]
    built_with: tuple[str, ...] = ()

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        values = {name: getattr(config, name) for name in self.built_with}
        self.network = self.kind(num_classes=config.num_labels, **values)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        logits = self.network(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The network has initialised itself."""


class WideResNetConfig(PretrainedConfig):
    model_type = "wide-resnet"


class WideResNetForImageClassification(ForImageClassification):
    config_class, kind = WideResNetConfig, WideResNet
    built_with = ("depth", "widen_factor", "dropout")


class ResNet42Config(PretrainedConfig):
    model_type = "resnet-42"


class ResNet42ForImageClassification(ForImageClassification):
    config_class, kind, built_with = ResNet42Config, ResNet42, ("dropout",)


class ResNet11Config(PretrainedConfig):
    model_type = "resnet-11"


class ResNet11ForImageClassification(ForImageClassification):
    config_class, kind = ResNet11Config, ResNet11
