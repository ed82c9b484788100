"""Weights in files and from elsewhere: always safetensors, always strict, never a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from s8lib.validation import BadInput

CONFIG, SAFETENSORS = "config.json", "model.safetensors"


class ModelError(BadInput):
    """A network that cannot be built, or weights that do not fit one."""


def save_model(model: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write `config.json` and `model.safetensors`, what `from_pretrained` takes, into an existing folder.

    Args:
        weights: a state dict of `model`, by default its own.
    """
    save_config(model, folder)
    state = model.state_dict() if weights is None else weights
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        save_file(weights, folder / SAFETENSORS, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"cannot write {folder / SAFETENSORS}: {error}") from error


def save_config(model: Any, folder: Path) -> None:
    """Write `config.json` alone, which the network itself tells."""
    (folder / CONFIG).write_text(json.dumps(model.saved_config(), indent=2) + "\n", encoding="utf-8")


def load_strictly(model: Any, weights: Mapping[str, Tensor], source: str, assign: bool) -> None:
    """Load `weights`, which came from `source`, as float32, if and only if every name and shape is the model's.

    Counters of batches, which others' weights often lack, may be missing: they are 0 then, and nothing reads them.

    Args:
        assign: make them the model's own tensors, for a model on the `meta` device; else copy into what it has.
    Raises:
        ModelError: listing what does not fit, or naming numbers that no training leaves; the model is unchanged.
    """
    wanted, found = (
        {name: _kind(value) for name, value in part.items()} for part in (model.state_dict(), weights)
    )
    counters = [name for name in wanted if name.endswith(".num_batches_tracked")]
    found = {name: wanted[name] for name in counters} | found
    problems = [
        f"{name}: {wanted.get(name, 'nothing')} expected, {found.get(name, 'nothing')} found"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if problems:
        fits = f"{source} does not fit {model.name} with {model.config['num_classes']} classes"
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{fits}: {'; '.join(problems[:3])}{more}")
    # Copied: a tensor that stays mapped ends the process if its file is cut short later.
    loaded = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in weights.items()}
    loaded |= {name: torch.as_tensor(weights.get(name, 0)).clone() for name in counters}
    for name, tensor in loaded.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{source}: {name} holds NaN or infinity")
        if name.endswith(".running_var") and (tensor < 0).any():
            raise ModelError(f"{source}: {name} holds a negative variance")
    model.load_state_dict(loaded, strict=True, assign=assign)


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'float' if value.is_floating_point() else value.dtype} {list(value.shape)}"
