"""The network's table has the commission's totals, and its two images hold all of it."""

from __future__ import annotations

import re

import torch

import s8lib as s8
from s8lib import report
from s8lib.report.network import layer_figure


def test_the_summary_prints_the_seeds_totals_and_disturbs_nothing() -> None:
    model = s8.build_model("resnet-42", seed=0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noise = torch.get_rng_state()
    text = report.summary(model)
    sizes = (
        "Forward/backward pass size (MB): 35.20",
        "Params size (MB): 114.56",
        "Estimated Total Size (MB): 149.77",
    )
    for line in ("Total params: 30,032,292", "Trainable params: 30,032,292", "Non-trainable params: 0", *sizes):
        assert line in text
    assert torch.equal(noise, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_two_images_of_the_network_hold_every_layer_once_and_the_totals() -> None:
    model = s8.build_model("resnet-42")
    first, second = (
        [text.get_text() for ax in layer_figure(model, part).axes for text in ax.texts] for part in (1, 2)
    )
    both = first + second
    sums = [both[i + 2] for i, text in enumerate(both) if re.fullmatch(r"stem|head|layer\d\.\d", text)]
    assert len(sums) == 1 + 20 + 1
    assert sum(int(count.replace(",", "")) for count in sums) == 30_032_292
    assert min(int(count.replace(",", "")) for count in sums) == 1_856, "the stem's"
    layers = [text.strip() for text in both if re.fullmatch(r" *\w+-\d+", text)]
    assert [int(layer.split("-")[1]) for layer in layers] == list(range(1, 153))
    assert second[second.index("Estimated Total Size (MB)") + 2] == "149.77"
    assert not any(text.startswith("Estimated") for text in first)
