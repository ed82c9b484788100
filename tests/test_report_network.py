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
        [line.get_text().split() for ax in layer_figure(model, part).axes for line in ax.texts] for part in (1, 2)
    )
    layers = [line for line in first + second if re.fullmatch(r"\w+-\d+", line[0] if line else "")]
    assert [int(layer[0].split("-")[1]) for layer in layers] == list(range(1, 153))
    assert sum(int(layer[2].replace(",", "")) for layer in layers) == 30_032_292
    assert layers[0] == ["Conv2d-1", "64×32×32", "1,728"]
    assert ["Estimated", "Total", "Size", "(MB)", "149.77"] in second
    assert not any(line[0] == "Estimated" for line in first)
