"""What is on a picture: names and probabilities for images of any size and kind."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from s8lib.data.cifar100 import CLASSES, SUPERCLASS_OF
from s8lib.data.pictures import prepare
from s8lib.metrics import predict_logits
from s8lib.models.weights import ModelError


class Guess(NamedTuple):
    """A class and its probability, in 0..1."""

    name: str
    probability: float

    @property
    def superclass(self) -> str | None:
        """The superclass of CIFAR-100 that the class is in; None for a class that CIFAR-100 does not have."""
        return SUPERCLASS_OF.get(self.name)


def predict(
    model: nn.Module, images: Any, classes: Sequence[str] | None = None, top: int = 5
) -> list[list[Guess]]:
    """The `top` likeliest classes of each image, likeliest first, in float32 on the device the model is on.

    Args:
        model: its training mode is restored.
        images: one image or several of them, as `prepare` takes them.
        classes: the names of the model's outputs, in their order; by default those it was trained with.
    Raises:
        ImageError: naming the image that cannot be read.
        ModelError: the model has another number of outputs than there are names.
        ValueError: `top` is no whole number of at least 1.
    """
    if not isinstance(top, int) or top < 1:
        raise ValueError(f"top = {top!r}: it must be a whole number of at least 1")
    batch = prepare(images)
    classes = getattr(model, "classes", CLASSES) if classes is None else classes
    probabilities = predict_logits(model, batch, precision="fp32").softmax(1)
    if probabilities.shape[1] != len(classes):
        raise ModelError(
            f"the model tells {probabilities.shape[1]} classes apart and there are {len(classes)} names: "
            "pass classes= with a name for each output"
        )
    best = probabilities.topk(min(top, len(classes)))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[Guess(classes[i], p) for i, p in zip(*row, strict=True)] for row in rows]
