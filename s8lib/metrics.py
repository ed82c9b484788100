"""How good a network is: counts over a whole split, in large mixed-precision batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s8lib.data import augment
from s8lib.data.cifar100 import Split
from s8lib.machine.device import autocast, pick_device, pick_precision
from s8lib.machine.progress import Table
from s8lib.machine.ranks import ALONE, Ranks
from s8lib.models.weights import ModelError

BINS = 15  # of confidence


@dataclass(frozen=True)
class Metrics:
    """Accuracies in percent, loss in nats.

    Attributes:
        n: number of images.
        loss: mean negative log-likelihood, without label smoothing.
        top1, top5: the true class is first, among the first five.
        superclass_top1: the first class lies in the true superclass; a class without images here lies in none.
        ece: expected calibration error, percent, over `calibration` (arXiv:1706.04599).
        top1_interval: Wilson's 95% interval of top1, for n independent images.
        per_class: top1 for each class; nan for a class that the split does not hold.
    """

    n: int
    loss: float
    top1: float
    top5: float
    superclass_top1: float
    ece: float
    top1_interval: tuple[float, float]
    per_class: tuple[float, ...]

    def table(self, classes: Sequence[str]) -> Table:
        """The numbers as lines of text; `classes` are the names of `per_class`."""
        low, high = self.top1_interval
        ranked = sorted(pair for pair in zip(self.per_class, classes, strict=True) if not math.isnan(pair[0]))
        rows = {
            "top-1": f"{self.top1:.2f}% (95% interval {low:.2f} to {high:.2f}%)",
            "top-5": f"{self.top5:.2f}%",
            "superclass top-1": f"{self.superclass_top1:.2f}%",
            "NLL": f"{self.loss:.4f} nats",
            "calibration error": f"{self.ece:.2f}% ({BINS} bins)",
            "worst classes": ", ".join(f"{name} {accuracy:.0f}%" for accuracy, name in ranked[:5]),
        }
        if self.superclass_top1 == self.top1:  # one's own classes have no superclasses
            del rows["superclass top-1"]
        return Table("\n".join(f"  {name:<19}{value}" for name, value in rows.items()))


def evaluate(
    model: nn.Module,
    split: Split,
    device: str | torch.device | None = None,
    precision: str = "auto",
    batch_size: int = 1000,
    ranks: Ranks = ALONE,
    flips: bool = False,
) -> Metrics:
    """Run `model` over all of `split`, unaugmented, in eval mode; its training mode is restored.

    Args:
        device: where to run, by default the best here; the model is moved there.
        precision: auto, bf16, fp16 or fp32.
        ranks: share the work among them; every rank returns the whole split's metrics.
        flips: average the logits of each image and its mirror image. That adds about one percent to top-1: say so
            where you quote it, since other figures are of a single view.
    Raises:
        ModelError: the split has labels that are no output of the model.
    """
    views = [split.images, split.images.flip(-1)] if flips else [split.images]
    model.to(pick_device(device))
    logits = torch.stack([predict_logits(model, view, precision, batch_size, ranks) for view in views]).mean(0)
    return metrics_of(logits.cpu(), split.labels.cpu(), split.coarse_labels.cpu())


@torch.inference_mode()
def predict_logits(
    model: nn.Module, images: Tensor, precision: str = "auto", batch_size: int = 1000, ranks: Ranks = ALONE
) -> Tensor:
    """Logits [N, classes] float32, on the model's device, for images [N, 3, 32, 32] uint8.

    Each of `ranks` runs its share of the batches and adds zeros for the rest, so the sum over ranks is exact.
    """
    device = next(model.parameters()).device
    precision = pick_precision(device, precision)
    was_training = model.training
    model.eval()
    batches = images.split(batch_size)
    if len(batches) < ranks.world:  # too few to share: every rank runs them all
        ranks = ALONE
    logits: dict[int, Tensor] = {}
    try:
        for index in range(ranks.rank, len(batches), ranks.world):
            batch = augment.normalize(batches[index].to(device).float() / 255)
            with autocast(device, precision):
                logits[index] = model(batch.contiguous(memory_format=torch.channels_last)).float()
    finally:
        model.train(was_training)
    classes = logits[ranks.rank].shape[1]
    zeros = [torch.zeros(len(batch), classes, device=device) for batch in batches]
    return ranks.sum(torch.cat([logits.get(index, zero) for index, zero in enumerate(zeros)]))


def metrics_of(logits: Tensor, labels: Tensor, coarse_labels: Tensor) -> Metrics:
    """Metrics of logits [N, classes] against labels [N], which must be in 0..classes-1, and coarse labels [N]."""
    n, classes = logits.shape
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        raise ModelError(f"the model tells {classes} classes apart, and the labels go from {low} to {high}")
    confidence, predicted = logits.softmax(1).max(1)
    correct = predicted == labels
    top5 = (logits.topk(min(5, classes)).indices == labels[:, None]).any(1)
    superclass_of = superclasses_of(labels, coarse_labels, classes)
    images, accuracy, sure = calibration(confidence, correct)
    per_class = torch.bincount(labels[correct], minlength=classes) / torch.bincount(labels, minlength=classes)
    hits = int(correct.sum())
    return Metrics(
        n=n,
        loss=float(F.cross_entropy(logits.double(), labels)),
        top1=100 * hits / n,
        top5=100 * int(top5.sum()) / n,
        superclass_top1=100 * int((superclass_of[predicted] == coarse_labels).sum()) / n,
        ece=100 * float((images * (accuracy - sure).abs()).sum()) / n,
        top1_interval=wilson_interval(hits, n),
        per_class=tuple((100 * per_class).tolist()),
    )


def superclasses_of(labels: Tensor, coarse_labels: Tensor, classes: int) -> Tensor:
    """[classes] int64: each class's superclass; -1 for a class that no label names."""
    superclass_of = torch.full((classes,), -1, device=labels.device)
    superclass_of[labels] = coarse_labels
    return superclass_of


def calibration(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over BINS equal bins of confidence ([N] in 0..1): the images in each, their accuracy and mean confidence.

    Returns three tensors [BINS]; an empty bin has accuracy and confidence 0.
    """
    index = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1  # bins (k/15, (k+1)/15], as in the paper
    images, hits, sure = (index.bincount(w, BINS) for w in (None, correct.double(), confidence.double()))
    return images, hits / images.clamp(min=1), sure / images.clamp(min=1)


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval, in percent, of `hits` successes among `n` (E. B. Wilson, 1927); z for 95%."""
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return 100 * (centre - half), 100 * (centre + half)
