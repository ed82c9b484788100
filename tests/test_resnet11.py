"""ResNet-11 and Muon: a network and an optimizer for runs of a few epochs."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import s8lib as s8
from s8lib.data.augment import normalize
from s8lib.models import layers
from s8lib.optimizer import Muon, make_optimizer, orthogonalised
from s8lib.run.save import content_of
from tests.runs import Cut, assert_same_bits, outcome, recipe, train

CPU = torch.device("cpu")
FAST = recipe(
    model="resnet-11", epochs=3, phase1_epochs=2, batch_size=20, image_size=(20, 24), optimizer="muon",
    anneal="linear", lr_peak=0.7, nesterov=True, dropout=(0.0, 0.0), mixup_alpha=(0.0, 0.0),
    augmentation=("light", "light"),
)  # fmt: skip


def started(data: s8.Cifar100) -> Any:
    model = s8.build_model("resnet-11", seed=0)
    model.start_from(pixels(data))
    return model


@pytest.fixture(scope="module")
def few(tiny: s8.Cifar100) -> s8.Cifar100:
    """For two steps an epoch of a network that takes long to train."""
    train, test = (split.subset(torch.arange(n)) for split, n in ((tiny.train, 40), (tiny.test, 20)))
    return dataclasses.replace(tiny, train=train, test=test)


def pixels(data: s8.Cifar100) -> torch.Tensor:
    return normalize(data.train.images.float() / 255)


# the network


def test_it_has_eleven_layers_and_the_first_of_them_is_fixed() -> None:
    model = s8.build_model("resnet-11")
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_608_312
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 11
    assert [layer.weight.requires_grad for layer in layers] == [False] + [True] * 10


def test_patches_of_the_training_images_come_out_white(tiny: s8.Cifar100) -> None:
    whiten = started(tiny).whiten
    with torch.no_grad():
        out = whiten(pixels(tiny)).transpose(0, 1).flatten(1)
    assert torch.equal(out[:12], -out[12:])
    second_moments = out[:12] @ out[:12].T / out.shape[1]
    off_diagonal = second_moments - second_moments.diag().diag()
    assert off_diagonal.abs().max() < 1e-3
    assert (second_moments.diag() < 1.001).all()
    assert (second_moments.diag() > 0.5).sum() >= 6, "those directions whose variance is far above eps"


def test_weights_that_have_been_trained_keep_their_first_layer(tiny: s8.Cifar100) -> None:
    model = started(tiny)
    before = model.whiten.weight.clone()
    model.start_from(1 - pixels(tiny) ** 2)
    assert torch.equal(model.whiten.weight, before)


def test_convolutions_start_as_the_identity_and_keep_the_size() -> None:
    group = s8.build_model("resnet-11").group3
    x = torch.randn(2, 256, 7, 7)
    padded = F.pad(x, (0, 1, 0, 1))
    assert torch.equal(group.conv(padded)[:, :256, :-1, :-1], x[:, :, 1:, 1:])
    assert group.eval()(x).shape == (2, 768, 3, 3)


@pytest.mark.parametrize("side", [4, 5, 7])  # of images of 20, 24 and 32 pixels
def test_no_pixel_is_lost_between_the_groups(side: int) -> None:
    group = s8.build_model("resnet-11", seed=0).group3.eval()
    reaches = torch.zeros(side, side, dtype=torch.bool)
    for pixel in range(side * side):
        x = torch.zeros(1, 256, side, side)
        x.view(256, -1)[:, pixel] = torch.randn(256)
        reaches.view(-1)[pixel] = not torch.equal(group(x), group(torch.zeros_like(x)))
    assert reaches.all()


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (7, 7), (4, 5), (7, 6)])
def test_padding_adds_outputs_only_where_the_pooling_takes_them(size: tuple[int, int]) -> None:
    group = s8.build_model("resnet-11", seed=0).group3.eval()
    x = torch.randn(3, 256, *size)
    pooled = F.silu(group.bn(F.max_pool2d(F.conv2d(F.pad(x, (0, 1, 0, 1)), group.conv.weight), 2)))
    branch = F.silu(group.bn_b(group.conv_b(F.silu(group.bn_a(group.conv_a(pooled))))))
    torch.testing.assert_close(group(x), pooled + branch)


def test_logits_come_from_the_maximum_and_the_mean_over_the_picture(tiny: s8.Cifar100) -> None:
    model = started(tiny).eval()
    x = pixels(tiny)[:20]
    maps = model.group3(model.group2(model.group1(F.silu(model.whiten(x))))).flatten(2)
    torch.testing.assert_close(model(x), 0.139 * (maps.max(2).values + maps.mean(2)) @ model.fc.weight.T)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.4}
    assert not any(norm.weight.requires_grad for norm in norms)


@pytest.mark.parametrize("side", [20, 24, 32])
def test_it_takes_images_of_every_size_that_it_is_trained_with(side: int) -> None:
    assert s8.build_model("resnet-11", 7)(torch.randn(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize(("taps", "side"), [(3, n) for n in range(1, 9)] + [(2, n) for n in range(2, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_small_maps_are_convolved_as_torch_does(taps: int, side: int, layout: torch.memory_format) -> None:
    conv = layers.Conv2d(6, 5, taps)
    with torch.inference_mode():  # what is made there serves training too
        conv(torch.randn(layers.LEAST_BATCH, 6, side, side))
    x = torch.randn(layers.LEAST_BATCH, 6, side, side).to(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    out, expected = conv(x), F.conv2d(*exact, padding=taps % 2)
    assert "ToomCook" in str(out.grad_fn)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    expected.backward(gradient.double())
    for found, wanted in ((out, expected), (x.grad, exact[0].grad), (conv.weight.grad, exact[1].grad)):
        assert found is not None
        assert wanted is not None
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=5e-5 * wanted.detach().std().item())


def test_all_else_is_torchs_own_convolution() -> None:
    conv = layers.Conv2d(6, 5, 3)
    x = torch.randn(layers.LEAST_BATCH, 6, 4, 4)

    def same(x: torch.Tensor) -> bool:
        return torch.equal(conv(x), F.conv2d(x, conv.weight.to(x.dtype), padding=1))

    assert not same(x)
    assert same(x[1:]), "a batch too small to pay for it"
    assert same(torch.randn(len(x), 6, 9, 9)), "maps too large"
    assert same(torch.randn(len(x), 6, 5, 4)), "maps that are no squares"
    with torch.autocast("cpu", torch.bfloat16):
        assert same(x.bfloat16())
        assert conv(x).dtype == torch.bfloat16
    conv.eval()
    assert same(x), "outside inference mode it may be exported"
    with torch.inference_mode():
        assert not same(x)


@pytest.mark.parametrize("mode", [True, False])
def test_it_compiles_as_a_whole(mode: bool) -> None:
    model = s8.build_model("resnet-11", seed=0).train(mode)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.randn(layers.LEAST_BATCH, 3, 20, 20)).shape == (layers.LEAST_BATCH, 100)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = torch.randn(layers.LEAST_BATCH, 2, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(layers.Conv2d(2, 2, 3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("side", [20, 24, 32])
def test_training_has_the_loss_and_the_gradients_of_the_network_in_float64(side: int) -> None:
    images = torch.randn(layers.LEAST_BATCH, 3, side, side)
    labels = torch.arange(len(images)) % 100
    model = s8.build_model("resnet-11", seed=0)
    model.start_from(images)
    exact = copy.deepcopy(model).double()
    model.to(memory_format=torch.channels_last)
    losses = [F.cross_entropy(net(x), labels) for net, x in ((model, images), (exact, images.double()))]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for (name, weight), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        if wanted.grad is not None:
            error = (weight.grad.double() - wanted.grad).norm() / wanted.grad.norm()
            assert error < 1e-2, name  # where the maximum falls on another pixel, a gradient goes elsewhere


@pytest.mark.parametrize(
    ("model", "precision", "compiled", "images", "expected"),
    [
        ("resnet-11", "fp32", False, 64, "Toom-Cook"),
        ("resnet-11", "fp32", False, 63, "torch"),
        ("resnet-11", "fp32", True, 64, "torch"),
        ("resnet-11", "bf16", False, 64, "torch"),
        ("wrn-10-1", "fp32", False, 64, None),
    ],
)
def test_a_save_remembers_how_small_maps_were_convolved(
    model: str, precision: str, compiled: bool, images: int, expected: str | None
) -> None:
    own = layers.algorithms_of(s8.build_model(model), CPU, precision, compiled, images)
    assert own.get("small convolutions") == expected
    on_a_gpu = layers.algorithms_of(s8.build_model(model), torch.device("cuda"), precision, compiled, images)
    assert on_a_gpu.get("small convolutions") == (expected and "torch")


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxscript"), ("program", "torch")])
def test_it_can_be_exported_and_is_verified(tmp_path: Path, tiny: s8.Cifar100, kind: str, package: str) -> None:
    pytest.importorskip(package)
    from s8lib.publish import export

    write = {"onnx": export.export_onnx, "program": export.export_program}[kind]
    assert write(started(tiny), tmp_path / "file").max_abs_difference is not None


def test_torchsummary_lists_its_layers() -> None:
    assert "Total params: 8,608,312" in s8.report.summary(s8.build_model("resnet-11"))


# the optimizer


def test_a_step_of_muon_is_orthogonal_and_the_others_are_sgds(tiny: s8.Cifar100) -> None:
    model = started(tiny)
    optimizer = make_optimizer(FAST, model, CPU, "fp32")
    reference = torch.optim.SGD([model.fc.weight], 0.1, 0.9, weight_decay=FAST.weight_decay, nesterov=True)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(pixels(tiny)[:20]).square().sum().backward()
    gradient = model.fc.weight.grad.clone()
    optimizer.step()
    after = model.fc.weight.detach().clone()
    with torch.no_grad():
        model.fc.weight.copy_(before["fc.weight"])
    model.fc.weight.grad = gradient
    reference.step()
    assert torch.equal(model.fc.weight, after)
    assert torch.equal(model.whiten.weight, before["whiten.weight"])
    conv = before["group2.conv_b.weight"]
    step = model.group2.conv_b.weight - conv * len(conv) ** 0.5 / conv.norm()
    values = torch.linalg.svdvals(step.detach().flatten(1) / 0.1)
    assert values.max() < 1.3
    assert values.median() > 0.3


def test_muon_goes_along_the_nesterov_momentum_of_its_gradients() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 2, 2))
    optimizer = make_optimizer(FAST, nn.ParameterList([weight]), CPU, "fp32")
    expected, momentum = weight.detach().clone(), torch.zeros(4, 12)
    for scale in (1, 10, 3):
        weight.grad = scale * torch.randn_like(weight)
        momentum = 0.6 * momentum + weight.grad.flatten(1)
        step = weight.grad.flatten(1) + 0.6 * momentum
        step /= step.norm()
        for _ in range(3):
            step = 3.4445 * step + (-4.7750 * step @ step.T + 2.0315 * step @ step.T @ step @ step.T) @ step
        expected = 2 * expected / expected.norm() - optimizer.param_groups[0]["lr"] * step.view_as(expected)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 64, 3, 3), (64, 8, 1, 1), (64, 3, 3, 3)])
def test_orthogonalising_pulls_singular_values_to_one_and_keeps_their_directions(shape: tuple[int, ...]) -> None:
    bank = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(bank.flatten(1), full_matrices=False)
    found = orthogonalised(bank, torch.float32)
    assert found.shape == bank.shape
    inner = u.T @ found.flatten(1) @ v.T
    assert (inner.diag() - 1).abs().max() < 0.4
    assert (inner - inner.diag().diag()).abs().max() < 1e-4


def test_an_fp16_step_that_overflows_changes_nothing(tiny: s8.Cifar100) -> None:
    model = started(tiny)
    optimizer = make_optimizer(FAST, model, CPU, "fp16")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    scaler.scale(model(pixels(tiny)[:4]).square().sum() * 1e30).backward()
    scaler.step(optimizer)
    assert isinstance(optimizer, Muon)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


# a run


def test_an_interrupted_run_equals_an_uninterrupted_one(
    tmp_path: Path, few: s8.Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "LEAST_BATCH", FAST.batch_size)

    def model() -> Any:
        return s8.build_model("resnet-11", seed=0)

    train(tmp_path / "whole", few, recipe=FAST, model=model())
    with pytest.raises(Cut):
        train(tmp_path / "cut", few, cut_after=1, recipe=FAST, model=model())
    shutil.copytree(tmp_path / "cut", tmp_path / "before")
    log = train(tmp_path / "cut", few, recipe=FAST, model=model())
    assert_same_bits(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))
    assert not tells_what_differs(tmp_path / "before", few, model())
    assert [row.lr for row in log][-1] < 0.2
    back = s8.load_model(tmp_path / "cut" / "best")
    assert isinstance(back, s8.ResNet11)
    assert s8.evaluate(back, few.test).top1 == log.best.test_acc


def test_a_save_of_before_goes_on_and_tells_that_its_last_bits_differ(tmp_path: Path, few: s8.Cifar100) -> None:
    with pytest.raises(Cut):
        train(tmp_path, few, cut_after=1, recipe=FAST, model=s8.build_model("resnet-11", seed=0))
    path, folder = tmp_path / "checkpoints" / "epoch_001.pt", s8.RunFolder(tmp_path)
    state, manifest = torch.load(path, weights_only=True), folder.manifest()
    del state["arithmetic"]["small convolutions"], state["arithmetic"]["Newton-Schulz"]
    torch.save(state, path)
    files = manifest.files | {"checkpoints/epoch_001.pt": content_of(path)}
    folder.install(dataclasses.replace(manifest, files=files))
    assert tells_what_differs(tmp_path, few, s8.build_model("resnet-11", seed=0)) == [
        "NOTE: weights will differ in their last bits from an uninterrupted run's: "
        "small convolutions 'torch, padded', now 'torch'; Newton-Schulz 'matrices', now 'Gram matrices'"
    ]


def tells_what_differs(run: Path, data: s8.Cifar100, model: Any) -> list[str]:
    lines: list[str] = []
    train(run, data, recipe=FAST, model=model, precision="fp32", lines=lines)
    return [line for line in lines if line.startswith("NOTE")]


def test_sgd_and_wide_networks_can_be_chosen_for_it_and_it_for_them(few: s8.Cifar100) -> None:
    short = dataclasses.replace(FAST, epochs=1, phase1_epochs=1, warmup_epochs=0)
    train(None, few, recipe=short, model=s8.build_model("wrn-10-1"))
    train(None, few, recipe=dataclasses.replace(short, optimizer="sgd", lr_peak=0.05), model=started(few))
