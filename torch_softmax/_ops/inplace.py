"""Handing a tensor's memory over to its gradient, with autograd's knowledge."""

from typing import Any

from torch import Tensor
from torch.autograd import Function


def take_over(x: Tensor) -> Tensor:
    """``x`` for the one who may overwrite it; a later use of ``x`` itself raises in backward.

    As after any in-place operation, whoever saved ``x`` earlier for its own backward raises too,
    and so does a leaf that requires grad, here.
    """
    taken = _Alias.apply(x)
    _Retire.apply(x)
    return taken


class _Alias(Function):
    """The same memory, with the history that ``x`` has now."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        return dx


class _Retire(Function):
    """End ``x``: whatever is derived from it from now on has no gradient but an error."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_dirty(output)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        raise RuntimeError(
            "cross_entropy was given these logits with inplace=True: their memory becomes their "
            "gradient, so that they cannot be used after it"
        )
