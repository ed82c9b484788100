"""Where this process stands among the ranks that `torchrun` started; alone, everything here does nothing."""

import atexit
import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `world` of them; rank 0 writes and speaks."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, on every rank, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, found: bool) -> bool:
        """Whether it was found on any rank."""
        device = "cuda" if self.world > 1 and dist.get_backend() == "nccl" else "cpu"
        return bool(self.sum(torch.tensor(int(found), device=device)))

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers: without SyncBatchNorm each rank has its own running statistics."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def share(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; for what only rank 0 can read, such as a checkpoint."""
        box = [value]
        if self.world > 1:  # on a CPU, and patiently: rank 0 may first have to fetch it from the Hub or Drive
            group: Any = dist.new_group(timeout=A_DAY, backend="gloo")
            dist.broadcast_object_list(box, src=0, group=group)
        return box[0]


ALONE = Ranks()
A_DAY = timedelta(days=1)
_JOINED = itertools.count()  # groups of this process: all ranks join and leave together


@contextlib.contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # torch would give each group the keys of the one before, whose addresses may still be in torchrun's store.
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"s8lib-{next(_JOINED)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # NCCL's ten minutes may not do for what one rank alone does, such as a save to a slow disk.
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(hours=1))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except BaseException:
        # The other ranks wait for this one, and NCCL's way out would wait for them: once all is told, the process
        # ends, and torchrun stops them.
        if dist.get_backend() == "nccl":
            atexit.register(os._exit, 1)
        else:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
