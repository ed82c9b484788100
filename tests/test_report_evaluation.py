"""The pictures of what a network gets wrong show its own answers; the sample grid shows what training shows it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

import s8lib as s8
from s8lib import report
from s8lib.data import augment
from s8lib.data.pictures import prepare
from tests.runs import RECIPE, small_model
from tests.test_report import made_up_log


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for ax in figure.axes for text in (*ax.texts, ax.title)] + [
        text.get_text() for text in figure.texts
    ]


def shown_images(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


@pytest.fixture(scope="module")
def data() -> s8.Cifar100:
    return s8.synthetic_cifar100(seed=0, train=200, test=400)


@pytest.fixture(scope="module")
def evaluation(data: s8.Cifar100) -> report.Evaluation:
    """Answers made up so that class 7 is always taken for 8, and others now and then for anything."""
    noise = torch.Generator().manual_seed(0)
    labels = data.test.labels
    logits = 3 * torch.randn(len(labels), 100, generator=noise)
    logits[torch.arange(len(labels)), labels] += 8
    logits[labels == 7] = 0.0
    logits[labels == 7, 8] = 20.0
    return report.Evaluation(logits, data.test, data.classes, data.superclasses)


def test_an_evaluation_is_of_every_test_image_and_leaves_the_network_in_training_mode(data: s8.Cifar100) -> None:
    model = small_model().train()
    found = report.evaluation(model, data, device="cpu", precision="fp32")
    assert found.logits.shape == (400, 100)
    assert found.metrics == s8.evaluate(model, data.test, "cpu", "fp32")
    assert model.training


def test_the_gaps_of_the_reliability_diagram_make_the_calibration_error(evaluation: report.Evaluation) -> None:
    diagram, sizes = report.reliability(evaluation).axes
    accuracies, gaps = diagram.containers
    images = np.array([bar.get_height() for bar in sizes.containers[0]])
    gap = np.array([bar.get_height() for bar in gaps])
    assert images.sum() == 400
    assert (images * abs(gap)).sum() / images.sum() == pytest.approx(evaluation.metrics.ece)
    accuracy = np.array([bar.get_height() for bar in accuracies])
    left = np.array([bar.get_x() for bar in accuracies])
    assert ((left < accuracy + gap) & (accuracy + gap <= left + 100 / 15)).all(), (
        "each bar stands at its confidence"
    )
    assert (images * accuracy).sum() / images.sum() == pytest.approx(evaluation.metrics.top1)


def test_the_diagonal_of_the_confusion_is_the_superclass_accuracy(
    evaluation: report.Evaluation, data: s8.Cifar100
) -> None:
    ax = report.superclass_confusion(evaluation).axes[0]
    shares = np.asarray(ax.images[0].get_array())
    assert np.allclose(shares.sum(1), 100)
    images = data.test.coarse_labels.bincount(minlength=20).numpy()
    assert (shares.diagonal() * images).sum() / 400 == pytest.approx(evaluation.metrics.superclass_top1)
    assert len(ax.get_yticklabels()) == 20


def test_the_worst_class_is_first_with_an_image_of_its_own_and_what_it_is_taken_for(
    evaluation: report.Evaluation, data: s8.Cifar100
) -> None:
    figure = report.worst_classes(evaluation)
    bars = figure.axes[0]
    assert bars.get_yticklabels()[0].get_text() == f"{data.classes[7]}\nn = 4"
    shown = [bar.get_width() for bar in bars.containers[0]]
    assert shown == sorted(evaluation.metrics.per_class)[:8]
    assert f"{data.classes[8]}\n4 of 4" in texts(figure)
    assert "0%" in texts(figure)
    own = data.test.images[data.test.labels == 7].permute(0, 2, 3, 1).numpy()
    assert any(np.array_equal(shown_images(figure)[0], image) for image in own)


def test_the_surest_mistakes_come_first_with_what_they_are_and_what_was_predicted(
    evaluation: report.Evaluation, data: s8.Cifar100
) -> None:
    captions = [text for text in texts(report.confident_mistakes(evaluation)) if "predicted: " in text]
    assert captions[0].startswith(f"true: {data.classes[7]}\npredicted: {data.classes[8]}\n> 99.9% sure\nthen: ")
    surest = evaluation.mistakes()[:16]
    for caption, values in zip(captions, evaluation.logits[surest].softmax(1), strict=True):
        name, _, share = caption.split("\nthen: ")[1].removesuffix("%").replace("< 0.1", "0.0").rpartition(" ")
        second = values.topk(2)
        assert name == data.classes[second.indices[1]]
        assert float(share) == pytest.approx(100 * float(second.values[1]), abs=0.06)
    sure = [float(caption.split("\n")[2].strip("> ").split("%")[0]) for caption in captions]
    assert sure == sorted(sure, reverse=True)
    assert len(captions) == 16
    assert all(line[0][6:] != line[1][11:] for line in (caption.split("\n") for caption in captions))


def test_a_network_without_mistakes_and_one_without_a_class_are_drawn_too(
    evaluation: report.Evaluation, data: s8.Cifar100
) -> None:
    labels = data.test.labels
    right = torch.nn.functional.one_hot(labels, 100) * 20.0
    perfect = dataclasses.replace(evaluation, logits=right)
    few = data.test.subset(torch.arange(3))
    part = dataclasses.replace(evaluation, split=few, logits=evaluation.logits[:3])
    for found in (perfect, part):
        for picture in (
            report.superclass_confusion, report.worst_classes, report.confident_mistakes, report.reliability,
            report.class_accuracy,
        ):  # fmt: skip
            picture(found).canvas.draw()
    assert "No mistakes in 400 test images" in texts(report.confident_mistakes(perfect))
    others = data.test.labels != 0  # of class 0 there is training data only, and every image is taken for it
    own, split = ("apple", "pear"), data.test.subset(others.nonzero()[:, 0][:6])
    split = dataclasses.replace(split, labels=torch.ones(6, dtype=torch.int64))
    split = dataclasses.replace(split, coarse_labels=split.labels)
    mistaken = report.Evaluation(torch.eye(2)[[0] * 6], split, own, own)
    shares = report.superclass_confusion(mistaken).axes[0].images[0].get_array()
    assert np.asarray(shares)[1].tolist() == [100, 0]
    one_wrong = right.clone()
    one_wrong[0] = right[labels != labels[0]][0]
    one = dataclasses.replace(evaluation, logits=one_wrong)
    assert "The surest of 1 mistake in 400 test images" in texts(report.confident_mistakes(one))
    assert len(report.worst_classes(one).axes[0].get_yticklabels()) == 1, "classes without a mistake are not worst"


def test_every_class_is_on_one_picture_the_best_first(evaluation: report.Evaluation, data: s8.Cifar100) -> None:
    figure = report.class_accuracy(evaluation)
    names = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    assert sorted(names) == sorted(data.classes)
    shown = [bar.get_width() for ax in figure.axes for bar in ax.patches]  # type: ignore[attr-defined]
    assert shown == sorted(evaluation.metrics.per_class, reverse=True)


def test_a_dark_style_of_the_notebook_changes_no_picture(evaluation: report.Evaluation, data: s8.Cifar100) -> None:
    log = made_up_log(s8.QUICK)

    def drawn() -> list[bytes]:
        figures = [
            report.curves(log, s8.QUICK, 75.0), report.schedule(s8.QUICK), report.sample_grid(data, s8.QUICK, 2),
            report.superclass_confusion(evaluation), report.class_accuracy(evaluation),
            report.worst_classes(evaluation, 2), report.confident_mistakes(evaluation, 2),
            report.reliability(evaluation), report.guesses(small_model(), data.test.images[:1]),
            report.layer_figure(small_model(), 1),
        ]  # fmt: skip
        return [figure._repr_png_() for figure in figures]

    usual = drawn()
    with style.context("dark_background"):
        assert drawn() == usual


def test_the_sample_grid_shows_originals_both_augmentations_and_mixup_of_the_same_images(
    data: s8.Cifar100,
) -> None:
    before = torch.get_rng_state()
    figure = report.sample_grid(data, s8.SEED_100, count=4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    images = shown_images(figure)
    assert len(images) == 4 * 4
    training = data.train.images.permute(0, 2, 3, 1).numpy()
    chosen = [next(i for i, image in enumerate(training) if np.array_equal(image, shown)) for shown in images[:4]]
    names = [data.classes[data.train.labels[i]].replace("_", " ") for i in chosen]
    originals = data.train.images[torch.tensor(chosen)]
    for row, policy in ((1, "full"), (2, "reduced")):
        expected = augment.augment(originals, policy, torch.Generator().manual_seed(1)).permute(0, 2, 3, 1)
        assert np.allclose(np.stack(images[4 * row : 4 * row + 4]), expected.clamp(0, 1).numpy(), atol=1e-6)
    captions = [text.replace("\n", " ") for text in texts(figure) if text.startswith("λ")]
    for place, (caption, mixed) in enumerate(zip(captions, images[12:], strict=True)):
        own, partner = names[place], names[place - 1]
        assert caption.endswith(f"{own} + {partner}")
        weight = float(caption.split()[1])
        assert 0.5 <= weight <= 0.9, "both images show"
        expected = weight * images[4 + place] + (1 - weight) * images[4 + (place - 1) % 4]
        assert np.allclose(mixed, expected, atol=0.006), "the caption's lambda, rounded to two digits"


def test_the_sample_grid_of_a_recipe_without_mixup_has_no_such_row_and_shows_the_image_size(
    data: s8.Cifar100,
) -> None:
    figure = report.sample_grid(data, s8.QUICK, count=2)
    assert not any("MixUp" in text for text in texts(figure))
    assert [image.shape[:2] for image in shown_images(figure)[2:]] == [(24, 24)] * 2 + [(32, 32)] * 2


def test_live_curves_renew_one_picture_and_always_show_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int]] = []

    def epochs_in(figure: Figure) -> int:
        return max(len(line.get_xdata()) for line in figure.axes[1].lines)

    class Handle:
        def update(self, figure: Figure) -> None:
            shown.append(("renewed", epochs_in(figure)))

    def display(figure: Figure, display_id: bool) -> Handle:
        shown.append(("shown", epochs_in(figure)))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    watch, log = report.LiveCurves(RECIPE), made_up_log(RECIPE)
    watch(log)
    assert not shown, "this is no notebook"
    monkeypatch.setattr("s8lib.report.training_curves.in_notebook", lambda: True)
    for epoch in range(1, RECIPE.epochs + 1):
        watch(s8.EpochLog(log[:epoch]))
    assert shown[-1] == ("renewed", RECIPE.epochs)
    assert len(shown) == 2, "these epochs are far shorter than a picture, so those between are passed over"


def test_guesses_are_the_networks_five_likeliest_classes_beside_what_it_saw(data: s8.Cifar100) -> None:
    model = small_model()
    pictures = [data.test.images[0], Image.new("RGB", (90, 60), "red"), data.test.images[1]]
    figure = report.guesses(model, pictures, data.classes)
    bars = [ax for ax in figure.axes if ax.containers]
    for ax, picture, expected in zip(bars, pictures, s8.predict(model, pictures, data.classes), strict=True):
        assert [bar.get_width() for bar in ax.containers[0]] == pytest.approx([p for _, p in expected])
        named = [label.get_text() for label in ax.get_yticklabels()]
        assert named == [guess.name.replace("_", " ") for guess in expected]
        assert f"{100 * expected[0].probability:.0f}%" in [text.get_text() for text in ax.texts]
        seen = shown_images(figure)[bars.index(ax)]
        assert np.array_equal(seen, prepare(picture)[0].permute(1, 2, 0).numpy())
    assert "true: a boat" in texts(report.guesses(model, pictures[:1], data.classes, ["true: a boat"]))
