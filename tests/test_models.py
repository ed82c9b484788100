"""Both networks are the documented ones to the parameter, and their weights come back whole or not at all."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torchsummary
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import s8lib as s8
from s8lib.models.layers import Dropout
from s8lib.models.weights import save_model

BOTH = ["wrn-28-10", "resnet-42"]


@pytest.fixture(scope="module")
def full_size() -> Callable[[str], s8.WideResNet | s8.ResNet42]:
    """The two networks of the specification, each built once."""
    built: dict[str, s8.WideResNet | s8.ResNet42] = {}

    def get(name: str) -> s8.WideResNet | s8.ResNet42:
        if name not in built:
            built[name] = s8.build_model(name, dropout=0.3, seed=0)
        return built[name]

    return get


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def lived_in(model: nn.Module) -> nn.Module:
    """Random weights and statistics everywhere, so that no two modules could be exchanged unnoticed."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def small_wrn(**fields: Any) -> s8.WideResNet:
    model = s8.WideResNet(**{"depth": 16, "widen_factor": 2, "num_classes": 10} | fields)
    assert lived_in(model) is model
    return model


def logits(model: nn.Module, n: int = 4) -> Tensor:
    with torch.inference_mode():
        return model(images(n))


# what they are


@pytest.mark.parametrize(("name", "parameters"), [("wrn-28-10", 36_536_884), ("resnet-42", 30_032_292)])
def test_parameters_for_100_classes(name: str, parameters: int, full_size: Callable[[str], nn.Module]) -> None:
    model = full_size(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_torchsummary_prints_the_seeds_figures_for_resnet_42(
    full_size: Callable[[str], nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    torchsummary.summary(full_size("resnet-42").eval(), (3, 32, 32), device="cpu")
    printed = capsys.readouterr().out.splitlines()
    for line in (
        "Total params: 30,032,292",
        "Trainable params: 30,032,292",
        "Non-trainable params: 0",
        "Forward/backward pass size (MB): 35.20",
        "Params size (MB): 114.56",
        "Estimated Total Size (MB): 149.77",
    ):
        assert line in printed


@pytest.mark.parametrize("name", BOTH)
def test_gradient_reaches_every_parameter(name: str, full_size: Callable[[str], nn.Module]) -> None:
    model = full_size(name).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = model(images(2))
        assert out.shape == (2, 100)
        F.cross_entropy(out, torch.tensor([3, 99])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", BOTH)
def test_convolutions_have_no_bias_and_start_kaiming_normal_fan_out(name: str) -> None:
    model = s8.build_model(name, seed=1)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == {"wrn-28-10": 1 + 24 + 3, "resnet-42": 1 + 40 + 3}[name]
    for conv in convolutions:
        assert conv.bias is None
        std = math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]))
        n = conv.weight.numel()
        assert conv.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
        assert conv.weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(n))


@pytest.mark.parametrize(("depth", "blocks"), [(10, 1), (16, 2), (22, 3), (40, 6)])
def test_a_depth_of_6n_plus_4_has_n_blocks_in_each_group(depth: int, blocks: int) -> None:
    model = s8.build_model(f"wrn-{depth}-1", num_classes=7)
    assert isinstance(model, s8.WideResNet)
    assert [len(group.layer) for group in (model.block1, model.block2, model.block3)] == [blocks] * 3
    assert model.name == f"wrn-{depth}-1"
    assert model.config == {"depth": depth, "widen_factor": 1, "num_classes": 7, "dropout": 0.0}
    assert logits(model.eval(), 3).shape == (3, 7)


@pytest.mark.parametrize("widen_factor", [1, 2, 4])
def test_groups_are_16_32_64_times_the_width_at_32_16_8_pixels(widen_factor: int) -> None:
    model = small_wrn(widen_factor=widen_factor)
    x = model.conv1(images(1))
    for group, width, side in ((model.block1, 16, 32), (model.block2, 32, 16), (model.block3, 64, 8)):
        x = group(x)
        assert x.shape == (1, width * widen_factor, side, side)


def test_resnet_42_has_five_blocks_at_64_128_256_512_channels() -> None:
    model = s8.ResNet42(num_classes=7).eval()
    x = F.relu(model.bn1(model.conv1(images(1))))
    sides = {64: 32, 128: 16, 256: 8, 512: 4}
    for group, (width, side) in zip(
        (model.layer1, model.layer2, model.layer3, model.layer4), sides.items(), strict=True
    ):
        x = group(x)
        assert len(group) == 5
        assert x.shape == (1, width, side, side)
    assert logits(model, 2).shape == (2, 7)


@pytest.mark.parametrize("name", ["wrn-16-2", "resnet-42"])
def test_channels_last_computes_the_same(name: str) -> None:
    model = lived_in(s8.build_model(name, num_classes=10, seed=0))
    expected = logits(model)
    model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = model(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class PublicBlock(nn.Module):
    """A block of the WideResNet that most public PyTorch weights are for, written from its description."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(wide_in), nn.BatchNorm2d(wide_out)
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, 1, 1, bias=False)
        if wide_in != wide_out:
            self.convShortcut = nn.Conv2d(wide_in, wide_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        if hasattr(self, "convShortcut"):
            x = self.convShortcut(active)
        return x + self.conv2(torch.relu(self.bn2(self.conv1(active))))


class PublicWideResNet(nn.Module):
    """conv1, block1-3 with a `layer` each, bn1, average over 8x8, fc."""

    def __init__(self, depth: int, widen: int, classes: int) -> None:
        super().__init__()
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for group in (1, 2, 3):
            blocks = [PublicBlock(widths[group - 1], widths[group], 1 if group == 1 else 2)]
            blocks += [PublicBlock(widths[group], widths[group], 1) for _ in range((depth - 4) // 6 - 1)]
            holder = nn.Module()
            holder.layer = nn.Sequential(*blocks)
            self.add_module(f"block{group}", holder)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for group in (self.block1, self.block2, self.block3):
            x = group.layer(x)
        return self.fc(F.avg_pool2d(torch.relu(self.bn1(x)), 8).flatten(1))


@pytest.mark.parametrize(("depth", "widen"), [(16, 2), (10, 1)])
def test_public_weights_compute_here_what_they_compute_there(depth: int, widen: int) -> None:
    public = lived_in(PublicWideResNet(depth, widen, 10))
    here = s8.WideResNet(depth, widen, 10, dropout=0.3).eval()
    here.load_state_dict(
        {name.replace("convShortcut", "shortcut"): tensor for name, tensor in public.state_dict().items()}
    )
    expected = logits(public)
    torch.testing.assert_close(logits(here), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# dropout and seeds


def test_set_dropout_changes_the_blocks_in_place_and_only_their_dropout() -> None:
    model = small_wrn(dropout=0.3)
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert [module.p for module in dropouts] == [0.3] * 6
    model.set_dropout(0.2)
    assert [module for module in model.modules() if isinstance(module, nn.Dropout)] == dropouts
    assert [module.p for module in dropouts] == [0.2] * 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_dropout_lies_between_the_two_convolutions_of_a_block() -> None:
    block = small_wrn(dropout=0.0).block1.layer[1]
    order: list[str] = []
    for name in ("bn1", "conv1", "bn2", "dropout", "conv2"):
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
    block(torch.randn(1, 32, 8, 8))
    assert order == ["bn1", "conv1", "bn2", "dropout", "conv2"]


def test_on_a_cpu_dropout_drops_its_p_and_keeps_the_expectation_in_any_layout() -> None:
    for p, dtype in ((0.3, torch.float32), (0.3, torch.bfloat16), (1e-5, torch.float32), (0.999, torch.float32)):
        module, ones = Dropout(p), torch.ones(16, 32, 32, 33, dtype=dtype)
        torch.manual_seed(0)
        dropped = module(ones)
        kept = dropped != 0
        n, rate = ones.numel(), 1 - round(p * 65536) / 65536
        assert abs(float(kept.double().mean()) - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
        assert dropped[kept].unique().tolist() == [
            pytest.approx(1 / rate, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
        ]
        torch.manual_seed(0)
        assert torch.equal(module(ones.to(memory_format=torch.channels_last)), dropped)
        assert not torch.equal(module(ones), dropped), "a new mask in each call"
        assert module.eval()(ones) is ones


def test_dropout_masks_have_no_pattern_and_reach_the_gradient() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 32, 16, 16, requires_grad=True)
    Dropout(0.5)(x).sum().backward()
    kept = (x.grad > 0).float() * 2 - 1
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}
    for dim in range(4):
        neighbours = float((kept * kept.roll(1, dim)).mean())
        assert abs(neighbours) < 5 / kept.numel() ** 0.5


def test_dropout_compiles_without_a_graph_break_and_is_nothing_to_an_export() -> None:
    model = small_wrn(dropout=0.3)
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    exported = torch.export.export(model.eval(), (x,))
    assert not [node for node in exported.graph.nodes if "random" in str(node.target)]


def test_resnet_42_keeps_its_head_dropout(full_size: Callable[[str], Any]) -> None:
    model = full_size("resnet-42")
    model.set_dropout(0.9)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.512]


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-42"])
def test_a_seed_makes_the_weights_and_leaves_the_random_state_alone(name: str) -> None:
    state = torch.get_rng_state()
    one, same, other = (s8.build_model(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_without_a_seed_the_global_random_state_makes_the_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        one, next_one = (s8.build_model("wrn-10-1").conv1.weight for _ in range(2))
        torch.manual_seed(4)
        same = s8.build_model("wrn-10-1").conv1.weight
    assert torch.equal(one, same)
    assert not torch.equal(one, next_one)


# weights in files

SAVE: dict[str, Callable[[Any, Path], object]] = {
    "save_model": save_model,
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
}


def small(kind: str) -> s8.WideResNet | s8.ResNet42:
    if kind == "wrn":
        return small_wrn(dropout=0.3)
    model = s8.ResNet42(num_classes=10, dropout=0.4)
    assert lived_in(model) is model
    return model


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE.keys())
@pytest.mark.parametrize("kind", ["wrn", "resnet"])
def test_a_saved_network_comes_back_equal_in_eval_mode(
    kind: str, save: Callable[[Any, Path], object], tmp_path: Path
) -> None:
    model = small(kind).to(memory_format=torch.channels_last)
    names = tuple(f"{place}th" for place in range(9, -1, -1))
    model.name_classes(names)
    save(model.train(), tmp_path)
    for back in (type(model).from_pretrained(str(tmp_path)), s8.load_model(tmp_path)):
        assert type(back) is type(model)
        assert not back.training
        assert (back.name, back.config, back.classes) == (model.name, model.config, names)
        theirs, ours = back.state_dict(), model.state_dict()
        assert list(theirs) == list(ours)
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    named = {
        "id2label": dict(zip("0123456789", names, strict=True)),
        "label2id": {n: names.index(n) for n in names},
    }
    config = {"model_type": type(model).model_type, **model.config, **named}
    assert json.loads((tmp_path / "config.json").read_text()) == config
    dropouts = [module.p for module in back.modules() if isinstance(module, nn.Dropout)]
    assert set(dropouts) == {model.config["dropout"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(small_wrn(), tmp_path)
    return tmp_path


def reshape(weights: dict[str, Tensor]) -> None:
    weights["fc.weight"] = torch.zeros(100, 128)


def poison(weights: dict[str, Tensor]) -> None:
    weights["bn1.running_var"][3] = -1.0


def empty(weights: dict[str, Tensor]) -> None:
    weights.clear()


UNFIT = [
    (
        reshape,
        "does not fit wrn-16-2 with 10 classes: fc.weight: float .10, 128. expected, float .100, 128. found",
    ),
    (poison, "bn1.running_var holds a negative variance"),
    (empty, r"expected, nothing found; .* and \d+ more"),
]


@pytest.mark.parametrize(("spoil", "message"), UNFIT)
def test_a_file_of_weights_that_do_not_fit_is_named(
    folder: Path, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors")
    for load in (s8.WideResNet.from_pretrained, s8.load_model):
        with pytest.raises(s8.ModelError, match=message) as caught:
            load(str(folder))
        assert str(folder / "model.safetensors") in str(caught.value)


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(Trap(folder / "sprung"), folder / "pytorch_model.bin")
    for load in (s8.WideResNet.from_pretrained, s8.load_model):
        with pytest.raises(s8.ModelError, match=r"cannot read the weights .*model\.safetensors"):
            load(str(folder))
    assert not (folder / "sprung").exists()


def test_the_other_kind_of_network_does_not_take_the_weights(folder: Path) -> None:
    with pytest.raises(s8.ModelError, match="holds a WideResNet, not a ResNet42"):
        s8.ResNet42.from_pretrained(str(folder))


def test_loading_is_strict_and_cannot_be_made_otherwise(folder: Path) -> None:
    assert s8.WideResNet.from_pretrained(str(folder), strict=True).config["depth"] == 16
    with pytest.raises(s8.ModelError, match="strict=False"):
        s8.WideResNet.from_pretrained(str(folder), strict=False)


def test_two_outputs_do_not_have_one_name(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": dict.fromkeys("0123456789", "cat")}))
    with pytest.raises(s8.ModelError, match="two outputs of wrn-16-2 are named 'cat'"):
        s8.load_model(folder)


def test_what_a_config_asks_for_takes_no_memory_before_the_file_is_seen_to_hold_it(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"depth": 10, "widen_factor": 60}))  # 1.4 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(s8.ModelError, match="does not fit wrn-10-60 with 10 classes"):
        s8.load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # KiB


def test_a_loaded_network_trains_and_does_not_depend_on_its_file(folder: Path) -> None:
    state = torch.get_rng_state()
    model = s8.load_model(folder)
    assert torch.equal(torch.get_rng_state(), state), "no random number is drawn for weights that are read"
    expected = logits(model)
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(logits(model), expected)
    model.to(memory_format=torch.channels_last).train()(images(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("other", [{"depth": 28}, {"widen_factor": 10}, {"dropout": 0.1}])
@pytest.mark.parametrize("name", ["resnet-42", "resnet-11"])
def test_what_only_another_kind_of_network_is_built_with_is_ignored_in_a_config(
    folder: Path, name: str, other: dict[str, float]
) -> None:
    save_model(s8.build_model(name, num_classes=3), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | other))
    assert s8.load_model(folder).name == name


def test_weights_without_counters_in_another_precision_beside_unknown_keys_are_taken(folder: Path) -> None:
    model = small_wrn()
    save_model(model, folder)
    (folder / "config.json").write_text(json.dumps(model.config | {"license": "mit"}))
    file = folder / "model.safetensors"
    saved = load_file(file)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        save_file({name: t.to(dtype) for name, t in saved.items() if t.is_floating_point()}, file)
        loaded = s8.load_model(folder)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32, torch.int64}
        torch.testing.assert_close(loaded.fc.weight, model.fc.weight, rtol=1e-2, atol=1e-3)
        assert int(loaded.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize("error", [HTTPError("the line broke"), RuntimeError("Xet lost it"), OSError("no route")])
def test_weights_that_do_not_come_through_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("s8lib.models.networks.hf_hub_download", Mock(side_effect=error))
    with pytest.raises(s8.ModelError, match=f"config.json cannot be had from the Hub: {error}"):
        s8.load_model("you/net")
