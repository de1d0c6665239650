"""Derivatives that would need further collectives are refused by name."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from torch_softmax._ops.registration import is_batched, is_plain_reverse_mode


def check_reverse_mode(function: str) -> None:
    """Raise RuntimeError under torch.func, in forward mode and while a program is exported."""
    if forward_ad._current_level >= 0 or not is_plain_reverse_mode():
        raise RuntimeError(
            f"{function} has derivatives in reverse mode only: it works neither under torch.func "
            "nor in forward mode, and cannot be exported"
        )


def check_single_gradient(function: str, *gradients: Tensor | None) -> None:
    """Raise RuntimeError for a batch of gradients in one backward."""
    if any(map(is_batched, gradients)):
        raise RuntimeError(f"{function} needs one backward per gradient, got is_grads_batched=True")


def without_second_derivatives(
    function: str, gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients; with ``create_graph=True`` their own backward raises."""
    if not torch.is_grad_enabled():
        return gradients
    leaves = (None if x is None else x.detach().requires_grad_() for x in gradients)
    refused: tuple[Tensor | None, ...] = _SecondDerivatives.apply(function, *leaves)
    return refused


class _SecondDerivatives(Function):
    """Its backward raises, and names the function."""

    @staticmethod
    def forward(ctx: Any, function: str, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.function = function
        return tuple(None if x is None else x.view_as(x) for x in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[None, ...]:
        raise RuntimeError(
            f"{ctx.function} has no second derivatives: they need the classes of all ranks. "
            "Gather the logits and call cross_entropy"
        )
