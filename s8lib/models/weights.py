"""Weights in files and from elsewhere: always safetensors, always strict, never a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG, SAFETENSORS = "config.json", "model.safetensors"


class ModelError(ValueError):
    """A network that cannot be built, or weights that do not fit one."""


def save_model(model: Any, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, what `from_pretrained` takes, into an existing folder."""
    (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_file(weights, folder / SAFETENSORS, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"cannot write {folder / SAFETENSORS}: {error}") from error


def read_safetensors(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ModelError: naming the file, if it cannot be read.
    """
    try:
        return load_file(file, device=device)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the weights {file}: {error}") from error


def load_public_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a WideResNet state dict of the common public PyTorch implementations into `model`, strictly.

    Their names are `conv1`, `block1.layer.0.conv1.weight`, `convShortcut` (or `shortcut`), `bn1`, `fc`; the
    prefixes `module.` (DataParallel) and `_orig_mod.` (torch.compile), in any order, are taken off.

    Raises:
        ModelError: listing the names or shapes that do not fit.
    """
    weights = {
        re.sub(r"^((module|_orig_mod)\.)+", "", name).replace("convShortcut", "shortcut"): tensor
        for name, tensor in state_dict.items()
    }
    load_strictly(model, weights, "the state dict")


def load_strictly(model: Any, weights: Mapping[str, Tensor], source: str) -> None:
    """Load `weights`, which came from `source`, if and only if every name and shape is the model's.

    Raises:
        ModelError: listing what does not fit; the model is unchanged.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - weights.keys()]
    problems += [f"{name} is not part of it" for name in weights.keys() - own.keys()]
    problems += [
        f"{name} has shape {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        classes = model.config["num_classes"]
        raise ModelError(
            f"{source} does not fit {model.name} with {classes} classes: {'; '.join(sorted(problems)[:3])}{more}"
        )
    model.load_state_dict(weights, strict=True)
