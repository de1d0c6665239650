"""Handing a tensor's memory over to its gradient, with autograd's knowledge."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def donate(x: Tensor) -> Tensor:
    """``x`` for the one who may overwrite it; a later use of ``x`` itself raises in backward.

    As after any in-place operation, whoever saved ``x`` earlier for its own backward raises too,
    and so does a leaf that requires grad, here.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError("cross_entropy needs inplace=False under torch.func, got True")
    if forward_ad._current_level >= 0:
        raise RuntimeError("cross_entropy needs inplace=False in forward mode, got True")
    taken = _Alias.apply(x)
    _Invalidate.apply(x)
    return taken


# without setup_context, for which PyTorch inspects signatures at each call: 25 us


class _Alias(Function):
    """The same memory, with the history that ``x`` has now."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        return dx


class _Invalidate(Function):
    """End ``x``: whatever is derived from it from now on has no gradient but an error."""

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
