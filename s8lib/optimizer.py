"""The optimizers: SGD as torch has it, and Muon for networks that learn in a few epochs."""

from typing import Any

import torch
from torch import Tensor, nn

from s8lib.machine.device import PRECISIONS
from s8lib.recipe import Recipe

MOMENTUM = 0.6  # Muon's
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the polynomial's coefficients, and
ITERATIONS = 3  # how often it is applied


def make_optimizer(recipe: Recipe, model: nn.Module, device: torch.device, precision: str) -> torch.optim.SGD:
    """The recipe's optimizer for the trained parameters of `model`, its momentum at zero.

    A group's `lr_factor` takes the recipe's learning rate to that of the group.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    options: dict[str, Any] = {"lr": recipe.at(0).lr, "momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.optimizer == "sgd":
        options |= {"weight_decay": recipe.weight_decay, "fused": device.type in ("cuda", "cpu")}
        optimizer = torch.optim.SGD(trained, **options)
    else:
        vectors, matrices, banks = ([weight for weight in trained if weight.ndim == n] for n in (1, 2, 4))
        groups: list[dict[str, Any]] = [
            {"params": banks, "muon": True, "lr_factor": recipe.muon_lr / recipe.lr_peak},
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors},
        ]
        optimizer = Muon(groups, PRECISIONS[precision], **options)
    for weight in trained:
        # Left to itself, fused SGD takes uninitialised memory, and keeps it if the first fp16 step overflows.
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


class Muon(torch.optim.SGD):
    """Muon (K. Jordan et al., 2024) for the groups marked `muon`, which hold convolutions, and SGD for the others.

    A step of Muon goes along the nearest orthogonal matrix to the Nesterov momentum, each filter bank seen as a
    matrix [out, in * height * width], whose norm is first set back to sqrt(out).
    """

    def __init__(self, groups: list[dict[str, Any]], precision: torch.dtype, **options: Any) -> None:
        super().__init__(groups, **options)
        self.precision = precision  # to orthogonalise in

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"] if group.get("muon") else ():
                momentum = self.state[weight]["momentum_buffer"]
                momentum.mul_(MOMENTUM).add_(weight.grad)
                update = orthogonalised(weight.grad.add_(momentum, alpha=MOMENTUM), self.precision)
                weight.mul_(len(weight) ** 0.5 / weight.norm()).add_(update, alpha=-group["lr"])
                weight.grad = None  # so that SGD passes it over
        return super().step(closure)


def orthogonalised(bank: Tensor, precision: torch.dtype) -> Tensor:
    """Roughly U V' of the singular value decomposition U S V' of `bank` [out, in, h, w], by Newton and Schulz."""
    matrix = bank.permute(0, 2, 3, 1).flatten(1)  # as channels-last weights lie; the order of columns is free
    matrix = (matrix / (matrix.norm() + 1e-7)).to(precision)  # before, fp16 might not hold numbers so small
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = (_by_gram_matrices if precision == torch.float32 else _one_by_one)(wide)
    out, channels, height, width = bank.shape
    orthogonal = wide if wide.shape == matrix.shape else wide.T
    return orthogonal.to(bank.dtype).reshape(out, height, width, channels).permute(0, 3, 1, 2)


def _one_by_one(wide: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide


def _by_gram_matrices(wide: Tensor) -> Tensor:
    """The same with fewer multiplications where `wide` is at least half as wide again as high, as most banks are.

    An iteration multiplies by a polynomial of the Gram matrix. Here the polynomials are multiplied with one
    another first. In half precision that would cost digits.
    """
    a, b, c = NEWTON_SCHULZ

    def polynomial(gram: Tensor) -> Tensor:
        factor = b * gram + c * gram @ gram
        factor.diagonal().add_(a)
        return factor

    gram = wide @ wide.T
    product = factor = polynomial(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = polynomial(gram)
        product = factor @ product
    return product @ wide


def newton_schulz(precision: str) -> str:
    """What Muon's iterations run over: part of a training's arithmetic."""
    return "Gram matrices" if precision == "fp32" else "channels-last matrices"
