"""A network's answers to every test image, kept, so that each picture of them costs no second pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s8lib.data.cifar100 import Cifar100, Split
from s8lib.machine.device import pick_device
from s8lib.metrics import metrics_of, predict_logits, superclasses_of


@dataclass(eq=False)
class Evaluation:
    """What a network answers to the images of `split`, all on the CPU.

    Attributes:
        logits: [N, 100] float32.
        metrics: of `logits`, over all of `split`.
        superclass_of: [100] int64, each class's superclass; -1 for a class that `split` has no image of.
        confidence: [N] float32, the probability of the class that is predicted.
        predicted: [N] int64.
        correct: [N] bool.
    """

    logits: Tensor
    split: Split
    classes: tuple[str, ...]
    superclasses: tuple[str, ...]

    def __post_init__(self) -> None:
        labels, coarse_labels = self.split.labels, self.split.coarse_labels
        self.metrics = metrics_of(self.logits, labels, coarse_labels)
        self.superclass_of = superclasses_of(labels, coarse_labels, len(self.classes))
        self.confidence, self.predicted = self.logits.softmax(1).max(1)
        self.correct = self.predicted == labels

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
    return Evaluation(logits, split, data.classes, data.superclasses)
