"""Every number of a report is what a plain count over the images says it is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import s8lib as s8
from s8lib.data import augment
from s8lib.metrics import Metrics, metrics_of, predict_logits, wilson_interval
from tests.runs import small_model

N, CLASSES = 1237, 100


@dataclasses.dataclass(frozen=True)
class Case:
    """Logits of a network that is right about half of the time, and their truth."""

    logits: Tensor  # [N, CLASSES]
    labels: Tensor  # [N]; every class is there
    coarse_labels: Tensor  # [N]

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax in float64."""
        shifted = self.logits.double().numpy()
        powers = np.exp(shifted - shifted.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    @property
    def metrics(self) -> Metrics:
        return metrics_of(self.logits, self.labels, self.coarse_labels)


@pytest.fixture(scope="module")
def case() -> Case:
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (N - CLASSES,), generator=generator)])
    superclass_of = torch.randperm(CLASSES, generator=generator) % 20
    logits = 2 * torch.randn(N, CLASSES, generator=generator)
    logits[torch.arange(N), labels] += 5
    return Case(logits, labels, superclass_of[labels])


@pytest.fixture
def model() -> s8.WideResNet:
    """Small, with running statistics and dropout that a careless evaluation would use or change."""
    model = small_model(dropout=0.5)
    model.train()
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return model


def test_top1_and_top5_are_counts_over_the_images(case: Case) -> None:
    ranking = np.argsort(-case.logits.numpy(), axis=1)
    labels = case.labels.numpy()
    metrics = case.metrics
    assert metrics.n == N
    assert metrics.top1 == 100 * np.count_nonzero(ranking[:, 0] == labels) / N
    assert metrics.top5 == 100 * sum(label in row[:5] for label, row in zip(labels, ranking, strict=True)) / N
    assert 30 < metrics.top1 < 70 < metrics.top5 < 99


def test_superclass_counts_a_wrong_class_of_the_right_superclass(case: Case) -> None:
    superclass_of = dict(zip(case.labels.tolist(), case.coarse_labels.tolist(), strict=True))
    predicted = np.argmax(case.logits.numpy(), axis=1).tolist()
    hits = sum(superclass_of[fine] == coarse for fine, coarse in zip(predicted, case.coarse_labels, strict=True))
    assert case.metrics.superclass_top1 == 100 * hits / N
    assert case.metrics.superclass_top1 > case.metrics.top1


def test_loss_is_the_mean_negative_log_likelihood_without_smoothing(case: Case) -> None:
    likelihood = case.probabilities[np.arange(N), case.labels.numpy()]
    assert case.metrics.loss == pytest.approx(-np.log(likelihood).mean(), rel=1e-9)
    assert case.metrics.loss == pytest.approx(float(F.cross_entropy(case.logits, case.labels)), rel=1e-5)


def test_a_sure_mistake_has_a_finite_loss() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]])
    metrics = metrics_of(logits, torch.tensor([0, 2]), torch.tensor([0, 1]))
    assert metrics.loss == pytest.approx(100)
    assert metrics.top1 == 50


def test_per_class_is_the_share_of_each_classs_own_images(case: Case) -> None:
    predicted, labels = np.argmax(case.logits.numpy(), axis=1), case.labels.numpy()
    expected = [100 * np.mean(predicted[labels == label] == label) for label in range(CLASSES)]
    assert case.metrics.per_class == pytest.approx(expected, rel=1e-6)


def test_a_class_that_is_not_there_has_no_accuracy() -> None:
    logits = torch.eye(4)[[0, 1, 3]]  # one image is taken for class 3, of which there is none
    metrics = metrics_of(logits, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0]))
    assert metrics.per_class[:2] == (100, 50)
    assert all(math.isnan(accuracy) for accuracy in metrics.per_class[2:])
    assert metrics.top1 == pytest.approx(200 / 3)
    assert metrics.top5 == 100  # of four classes, all are among the first five
    assert "b 50%, a 100%" in metrics.table("abcd")
    assert "nan" not in metrics.table("abcd")


def ece_by_a_loop(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Percent, bins (k/15, (k+1)/15]."""
    ece, counted = 0.0, 0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        counted += inside.sum()
        if inside.any():
            ece += 100 * inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert counted == len(confidence)
    return ece


def test_ece_is_the_papers_sum_over_15_bins(case: Case) -> None:
    probabilities = case.probabilities
    correct = probabilities.argmax(1) == case.labels.numpy()
    assert case.metrics.ece == pytest.approx(ece_by_a_loop(probabilities.max(1), correct), rel=1e-5)


def test_ece_does_not_let_one_bin_make_up_for_the_next() -> None:
    confidence = torch.linspace(0.011, 0.999, 500)
    logits = torch.zeros(500, CLASSES)
    logits[:, 0] = (confidence * (CLASSES - 1) / (1 - confidence)).log()
    correct = (confidence * 15).long() % 2 == 0  # always right in one bin, always wrong in the next
    labels = (~correct).long()
    ece = metrics_of(logits, labels, torch.zeros_like(labels)).ece
    assert ece == pytest.approx(ece_by_a_loop(confidence.double().numpy(), correct.numpy()), rel=1e-4)
    assert ece > 40
    assert 100 * abs(float(confidence.mean() - correct.float().mean())) < 10  # what a single bin would say


def test_ece_of_a_network_that_is_as_sure_as_it_is_right() -> None:
    certain = torch.full((8, 2), -50.0)
    certain[:, 0] = 50
    zeros = torch.zeros(8, dtype=torch.int64)
    assert metrics_of(certain, zeros, zeros).ece == pytest.approx(0)
    assert metrics_of(certain, zeros + 1, zeros).ece == pytest.approx(100)
    assert metrics_of(torch.zeros(8, 2), zeros + torch.arange(8) % 2, zeros).ece == pytest.approx(0)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # the roots of (p - hits/n)^2 = z^2 p (1-p) / n, to two places
        (80, 100, 71.12, 86.66),
        (0, 10, 0.00, 27.75),
        (10, 10, 72.25, 100.00),
        (1, 2, 9.45, 90.55),
        (8000, 10_000, 79.20, 80.77),
    ],
)
def test_wilson_interval_of_known_counts(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=0.005)
    z2 = 1.959964**2
    roots = np.roots([1 + z2 / n, -(2 * hits / n + z2 / n), (hits / n) ** 2])
    assert wilson_interval(hits, n) == pytest.approx(100 * np.sort(roots), abs=1e-6)


def test_the_interval_is_that_of_top1(case: Case) -> None:
    assert case.metrics.top1_interval == wilson_interval(round(case.metrics.top1 * N / 100), N)


# evaluate: the network over a split


def test_evaluate_counts_every_image_once_when_the_last_batch_is_short(
    model: s8.WideResNet, tiny: s8.Cifar100
) -> None:
    model.eval()
    with torch.inference_mode():
        logits = model(augment.normalize(tiny.test.images.float() / 255))
    expected = metrics_of(logits, tiny.test.labels, tiny.test.coarse_labels)
    found = s8.evaluate(model, tiny.test, precision="fp32", batch_size=32)  # 32 + 32 + 32 + 4
    assert found.n == len(tiny.test) == 100
    assert (found.top1, found.top5) == (expected.top1, expected.top5)
    assert found.superclass_top1 == expected.superclass_top1
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_flips_average_the_logits_of_both_views(model: s8.WideResNet, tiny: s8.Cifar100) -> None:
    images = tiny.test.images
    logits = (predict_logits(model, images, "fp32") + predict_logits(model, images.flip(-1), "fp32")) / 2
    both = s8.evaluate(model, tiny.test, "cpu", "fp32", flips=True)
    assert both.loss == pytest.approx(metrics_of(logits, tiny.test.labels, tiny.test.coarse_labels).loss, rel=1e-6)
    assert both.loss != s8.evaluate(model, tiny.test, "cpu", "fp32").loss


def test_the_batch_size_does_not_matter(model: s8.WideResNet, tiny: s8.Cifar100) -> None:
    logits = [predict_logits(model, tiny.test.images, "fp32", size) for size in (7, 64, 100, 1000)]
    for other in logits[1:]:
        assert other.shape == (100, 100)
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_network_and_the_random_state_as_they_were(
    model: s8.WideResNet, tiny: s8.Cifar100, training: bool
) -> None:
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    one = s8.evaluate(model, tiny.test, batch_size=32)
    other = s8.evaluate(model, tiny.test, batch_size=32)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert one.loss == other.loss  # no dropout: equal every time


def test_bf16_is_near_fp32(model: s8.WideResNet, tiny: s8.Cifar100) -> None:
    exact, rounded = (predict_logits(model, tiny.test.images, precision) for precision in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()
    exact_loss, rounded_loss = (s8.evaluate(model, tiny.test, precision=p).loss for p in ("fp32", "bf16"))
    assert rounded_loss == pytest.approx(exact_loss, rel=0.02)


def test_the_device_may_be_named(model: s8.WideResNet, tiny: s8.Cifar100) -> None:
    assert s8.evaluate(model, tiny.test, "cpu") == s8.evaluate(model, tiny.test, torch.device("cpu"))
    with pytest.raises(ValueError, match="precision 'half' is unknown"):
        s8.evaluate(model, tiny.test, precision="half")


@pytest.mark.parametrize("label", [-1, 100])
def test_a_label_that_is_no_output_of_the_network_is_refused(
    model: s8.WideResNet, tiny: s8.Cifar100, label: int
) -> None:
    labels = tiny.test.labels.clone()
    labels[7] = label
    with pytest.raises(s8.ModelError, match="^the model tells 100 classes apart, and the labels go from "):
        s8.evaluate(model, dataclasses.replace(tiny.test, labels=labels))
