"""Donate the memory of a tensor to its gradient, and invalidate the tensor for autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def donate(x: Tensor) -> Tensor:
    """Return an alias of ``x`` to overwrite; a later use of ``x`` raises in backward.

    As after any in-place operation, functions that saved ``x`` earlier raise in backward too, and a
    leaf that requires grad raises here.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError("cross_entropy needs inplace=False under torch.func, got True")
    if forward_ad._current_level >= 0:
        raise RuntimeError("cross_entropy needs inplace=False in forward mode, got True")
    alias: Tensor = _Alias.apply(x)
    _Invalidate.apply(x)
    return alias


def overwritten(x: Tensor) -> Tensor:
    """The memory of ``x``, whose new content is its gradient.

    Functions that saved ``x`` raise in backward, as after any in-place operation.
    """
    torch.autograd.graph.increment_version(x)
    return x.detach()


# no setup_context: PyTorch would inspect signatures at each call, which costs 25 us


class _Alias(Function):
    """An alias of ``x`` with its present autograd history."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        return dx


class _Invalidate(Function):
    """Invalidate ``x``: the backward of every later function of ``x`` raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        raise RuntimeError(
            "cross_entropy was given these logits with inplace=True: their memory becomes their "
            "gradient, so that they cannot be used after it"
        )
