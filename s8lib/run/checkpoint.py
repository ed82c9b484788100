"""What a checkpoint holds: all that changes while training and does not follow from the epoch."""

import dataclasses
import pickle
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.utils import _pytree as pytree

from s8lib.run.log import Epoch, EpochLog
from s8lib.run.save import RunError
from s8lib.validation import one_line, refusing


@dataclass(config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class Checkpoint:
    """Everything on the CPU, in primitives and tensors, so that it loads with `weights_only=True`.

    Attributes:
        identity: the recipe, the model and the data of the run; see `run.save.identity_of`.
        model, optimizer, scaler: their state dicts; the scaler's is empty where no loss is scaled.
        log: the rows of all epochs so far, at full precision; a copy of what is given.
        arithmetic: what the last bits depend on; see `machine.arithmetic`. Empty in saves of format 1.
    """

    identity: dict[str, dict[str, Any]]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    log: Annotated[EpochLog, BeforeValidator(EpochLog)]
    arithmetic: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.log or [row.epoch for row in self.log] != list(range(1, len(self.log) + 1)):
            raise ValueError("the epochs of its log are not 1, 2, 3, ...")

    @property
    def epoch(self) -> int:
        return len(self.log)

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
    def load(cls, path: Path) -> "Checkpoint":
        """Read one; no pickle is run.

        Raises:
            RunError: it is no checkpoint of this library, or a part of it is missing.
        """
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            with refusing(ValueError):
                return cls(**values | {"log": [Epoch(**row) for row in values.get("log", ())]})
        # All that torch.load answers a stranger's file with, and what one that holds no such dictionary comes to.
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError,
                pickle.UnpicklingError) as error:  # fmt: skip
            raise RunError(
                f"{path} is no checkpoint that training can go on from ({one_line(error)}): remove it to go on "
                "from an older one, or use another run folder"
            ) from error

    def size(self) -> int:
        """Bytes that its tensors take."""
        tensors = (leaf for leaf in pytree.tree_leaves([self.model, self.optimizer]) if isinstance(leaf, Tensor))
        return sum(tensor.nbytes for tensor in tensors)


def snapshot(states: Any) -> Any:
    """Nested states with a copy of each tensor on the CPU, which training does not change any more."""
    devices = {leaf.device for leaf in pytree.tree_leaves(states) if isinstance(leaf, Tensor)}
    # Pinned, where they come from a GPU.
    copies = pytree.tree_map_only(Tensor, lambda t: t.detach().to("cpu", non_blocking=True, copy=True), states)
    for device in devices - {torch.device("cpu")}:
        torch.accelerator.synchronize(device)  # once for all of them
    return copies
