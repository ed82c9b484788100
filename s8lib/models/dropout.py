"""Dropout whose masks cost little on a CPU, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16


class Dropout(nn.Dropout):
    """`nn.Dropout`, but on a CPU for [N, C, H, W] with masks of 16-bit random numbers; `p` is rounded to 1/65536.

    torch draws its Bernoulli masks there one by one, in a thread: 40% of a step of WRN-16-2. Four elements of a
    mask come from one 64-bit number of the same global random state, and depend on no memory layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = min(round(self.p * LEVELS), LEVELS - 1)
        if not (x.is_cpu and self.training and dropped):
            return super().forward(x)
        n, channels, height, width = x.shape
        random = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        least = dropped - LEVELS // 2  # of the numbers that keep their element
        # A comparison and its conversion would take three times as long: torch does not vectorise booleans.
        kept = random[: x.numel()].clamp_(least - 1, least).sub_(least - 1).to(x.dtype)
        noise = kept.mul_(LEVELS / (LEVELS - dropped)).view(n, height, width, channels).permute(0, 3, 1, 2)
        return x * noise


def masks_of(model: nn.Module, device: torch.device) -> str:
    """How the masks inside the blocks of `model` are drawn: part of a training's arithmetic."""
    of_16_bits = device.type == "cpu" and any(isinstance(module, Dropout) for module in model.modules())
    return "16-bit" if of_16_bits else "torch"
