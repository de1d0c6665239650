"""Softmax and log-softmax over any axis: operators and autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import reference
from torch_softmax._layout import empty_contiguous_like
from torch_softmax._ops.registration import (
    needs_differentiable_backward,
    register,
    takes_functions,
)


def _empty_result(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return empty_contiguous_like(x, dtype)


def _empty_gradient(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return empty_contiguous_like(y, dtype)


softmax_forward = register(
    "softmax_forward(Tensor x, int dim, ScalarType dtype) -> Tensor", _empty_result
)
softmax_backward = register(
    "softmax_backward(Tensor dy, Tensor y, int dim, ScalarType dtype) -> Tensor", _empty_gradient
)
log_softmax_forward = register(
    "log_softmax_forward(Tensor x, int dim, ScalarType dtype) -> Tensor", _empty_result
)
log_softmax_backward = register(
    "log_softmax_backward(Tensor dy, Tensor y, int dim, ScalarType dtype) -> Tensor",
    _empty_gradient,
)


def softmax(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x)) in ``dtype``, differentiable."""
    if takes_functions(x):
        y: Tensor = SoftmaxFunction.apply(x, dim, dtype)
        return y
    return torch.softmax(x, dim, dtype)


def log_softmax(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x))) in ``dtype``, differentiable."""
    if takes_functions(x):
        y: Tensor = LogSoftmaxFunction.apply(x, dim, dtype)
        return y
    return torch.log_softmax(x, dim, dtype)


class SoftmaxFunction(Function):
    """Softmax over an axis: ``apply(x, dim, dtype)`` with the dtype of the result."""

    # no setup_context: PyTorch would inspect signatures at each call, which costs 25 us
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        y = softmax_forward(x, dim, dtype)
        ctx.save_for_backward(y)
        ctx.dim, ctx.x_dtype = dim, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        differentiable = needs_differentiable_backward(dy)
        backward = reference.softmax_backward if differentiable else softmax_backward
        return backward(dy, y, ctx.dim, ctx.x_dtype), None, None


class LogSoftmaxFunction(Function):
    """Log-softmax over an axis: ``apply(x, dim, dtype)`` with the dtype of the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        y = log_softmax_forward(x, dim, dtype)
        ctx.save_for_backward(y)
        ctx.dim, ctx.x_dtype = dim, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        differentiable = needs_differentiable_backward(dy)
        backward = reference.log_softmax_backward if differentiable else log_softmax_backward
        return backward(dy, y, ctx.dim, ctx.x_dtype), None, None
