"""Log-softmax over the last axis: operators and derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax._layout import compute_dtype, empty_rows_like, with_collapsible_batch_dims
from torch_softmax._ops.registration import (
    WithoutForwardMode,
    apply,
    batch_first,
    register,
)

log_softmax_forward = register(
    "log_softmax_forward(Tensor x, ScalarType dtype) -> Tensor", empty_rows_like
)
log_softmax_backward = register(
    "log_softmax_backward(Tensor dy, Tensor y, ScalarType dtype) -> Tensor",
    lambda dy, y, dtype: empty_rows_like(y, dtype),
)


def log_softmax(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x))) in ``dtype``, differentiable."""
    return apply(LogSoftmaxFunction, _LogSoftmaxTraced, with_collapsible_batch_dims(x), dtype)


def _log_softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    return apply(
        LogSoftmaxBackwardFunction,
        _LogSoftmaxBackwardTraced,
        dy,
        with_collapsible_batch_dims(y),
        dtype,
    )


class LogSoftmaxFunction(Function):
    """Log-softmax over the last axis: ``apply(x, dtype)`` with the dtype of the result."""

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return log_softmax_forward(x, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _ = inputs
        ctx.x_dtype = x.dtype
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _log_softmax_backward(dy, y, ctx.x_dtype), None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, _: None) -> Tensor:
        (y,) = ctx.saved_tensors
        wide = x_tangent.to(compute_dtype(y.dtype))
        return (wide - (y.exp() * wide).sum(-1, keepdim=True)).to(y.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
        (x,) = batch_first(info.batch_size, in_dims[:1], x)
        return log_softmax(x, dtype), 0


class LogSoftmaxBackwardFunction(Function):
    """dx = dy - exp(y) * sum(dy), differentiable: ``apply(dy, y, dtype)``."""

    @staticmethod
    def forward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        return log_softmax_backward(dy, y, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, y, ctx.dtype = inputs
        ctx.save_for_backward(dy, y)
        ctx.save_for_forward(dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, Tensor, None]:
        dy, y = ctx.saved_tensors
        weighted = y.to(compute_dtype(y.dtype)).exp() * ddx
        dy_gradient = ddx - weighted.sum(-1, keepdim=True)
        y_gradient = -weighted * _sum(dy)
        return dy_gradient.to(dy.dtype), y_gradient.to(y.dtype), None

    @staticmethod
    def jvp(ctx: Any, dy_tangent: Tensor, y_tangent: Tensor, _: None) -> Tensor:
        dy, y = ctx.saved_tensors
        along_y = y.to(compute_dtype(y.dtype)).exp() * y_tangent * _sum(dy)
        return _log_softmax_backward(dy_tangent, y, ctx.dtype) - along_y.to(ctx.dtype)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, dy: Tensor, y: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, int]:
        dy, y = batch_first(info.batch_size, in_dims[:2], dy, y)
        return _log_softmax_backward(dy, y, dtype), 0


class _LogSoftmaxTraced(WithoutForwardMode, LogSoftmaxFunction):
    pass


class _LogSoftmaxBackwardTraced(WithoutForwardMode, LogSoftmaxBackwardFunction):
    pass


def _sum(dy: Tensor) -> Tensor:
    return dy.to(compute_dtype(dy.dtype)).sum(-1, keepdim=True)
