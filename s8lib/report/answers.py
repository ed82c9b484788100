"""A network's answers to every test image, kept, so that each picture of them costs no second pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from s8lib.data.cifar100 import Cifar100, Split
from s8lib.machine.device import pick_device
from s8lib.metrics import Metrics, metrics_of, predict_logits


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network answers to the images of `split`, all on the CPU.

    Attributes:
        metrics: of `logits`, over all of `split`.
        logits: [N, 100] float32.
        superclass_of: [100] int64, each class's superclass; -1 for a class that the data has no image of.
        confidence: [N] float32, the probability of the class that is predicted.
        predicted: [N] int64.
        correct: [N] bool.
    """

    metrics: Metrics
    logits: Tensor
    split: Split
    classes: tuple[str, ...]
    superclasses: tuple[str, ...]
    superclass_of: Tensor

    @cached_property
    def confidence(self) -> Tensor:
        return self.logits.softmax(1).amax(1)

    @cached_property
    def predicted(self) -> Tensor:
        return self.logits.argmax(1)

    @cached_property
    def correct(self) -> Tensor:
        return self.predicted == self.split.labels

    def mistakes(self) -> Tensor:
        """[M] int64: the images that are taken for another class, the most confident mistake first."""
        wrong = (~self.correct).nonzero().flatten()
        return wrong[self.confidence[wrong].argsort(descending=True, stable=True)]


def evaluation(
    model: nn.Module, data: Cifar100, device: str | torch.device | None = None, precision: str = "auto"
) -> Evaluation:
    """Run `model` over the test set once, unaugmented, in eval mode; its training mode is restored.

    Args:
        device: where to run, by default the best here; the model is moved there.
        precision: auto, bf16, fp16 or fp32.
    """
    split = data.test.to("cpu")
    logits = predict_logits(model.to(pick_device(device)), split.images, precision).cpu()
    superclass_of = torch.full((len(data.classes),), -1)
    for part in (data.train, data.test):
        superclass_of[part.labels.cpu()] = part.coarse_labels.cpu()
    metrics = metrics_of(logits, split.labels, split.coarse_labels)
    return Evaluation(metrics, logits, split, data.classes, data.superclasses, superclass_of)
