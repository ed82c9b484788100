"""What a checkpoint holds: all that changes while training and does not follow from the epoch."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from s8lib.run.log import Epoch, EpochLog
from s8lib.run.save import RunError
from s8lib.validation import refusing


@dataclass(config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class Checkpoint:
    """Everything on the CPU, in primitives and tensors, so that it loads with `weights_only=True`.

    Attributes:
        identity: the recipe, the model and the data of the run; see `run.save.identity_of`.
        model, optimizer, scaler: their state dicts; the scaler's is empty where no loss is scaled.
        log: the rows of all epochs so far, at full precision.
        arithmetic: what the last bits depend on; see `machine.arithmetic`. Empty in saves of format 1.
    """

    identity: dict[str, dict[str, Any]]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    log: Annotated[list[Epoch], Field(min_length=1)]
    arithmetic: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if [row.epoch for row in self.log] != list(range(1, len(self.log) + 1)):
            raise ValueError("the epochs of its log are not 1, 2, 3, ...")

    @property
    def epoch(self) -> int:
        return len(self.log)

    @property
    def epoch_log(self) -> EpochLog:
        return EpochLog(self.log)

    def save(self, path: Path) -> None:
        """Write it. A disk that refuses is an OSError, as with every other file."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["log"] = [dataclasses.asdict(row) for row in self.log]
        with open(path, "wb") as file:
            try:
                torch.save(values, file)
            except RuntimeError as error:  # torch's word for what the file refused, which is its context
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read one; no pickle is run.

        Raises:
            RunError: it is no checkpoint of this library, or a part of it is missing.
        """
        reason = "it holds no dictionary"
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(values, dict) and all(isinstance(key, str) for key in values):
                with refusing(ValueError):
                    return cls(**values | {"log": [Epoch(**row) for row in values.get("log", ())]})
        # All that torch.load answers a stranger's file with, and what `refusing` raises.
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError,
                pickle.UnpicklingError) as error:  # fmt: skip
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{path} is no checkpoint that training can go on from ({reason}): remove it to go on from an older "
            "one, or use another run folder"
        )

    def size(self) -> int:
        """Bytes that its tensors take."""
        return sum(t.numel() * t.element_size() for t in _tensors([self.model, self.optimizer]))


def snapshot(states: Any) -> Any:
    """Nested states with a copy of each tensor on the CPU, which training does not change any more."""
    copies = _on_cpu(states)
    for device in {tensor.device for tensor in _tensors(states)} - {torch.device("cpu")}:
        torch.accelerator.synchronize(device)  # once for all of them
    return copies


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=True)  # pinned, if it comes from a GPU
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
