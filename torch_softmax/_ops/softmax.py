"""Softmax over the last axis: operators and derivatives."""

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

softmax_forward = register("softmax_forward(Tensor x, ScalarType dtype) -> Tensor", empty_rows_like)
softmax_backward = register(
    "softmax_backward(Tensor dy, Tensor y, ScalarType dtype) -> Tensor",
    lambda dy, y, dtype: empty_rows_like(y, dtype),
)


def softmax(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x)) in ``dtype``, differentiable."""
    return apply(SoftmaxFunction, _SoftmaxTraced, with_collapsible_batch_dims(x), dtype)


def _softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    return apply(
        SoftmaxBackwardFunction, _SoftmaxBackwardTraced, dy, with_collapsible_batch_dims(y), dtype
    )


class SoftmaxFunction(Function):
    """Softmax over the last axis: ``apply(x, dtype)`` with the dtype of the result."""

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return softmax_forward(x, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _ = inputs
        ctx.x_dtype = x.dtype
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _softmax_backward(dy, y, ctx.x_dtype), None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, _: None) -> Tensor:
        # the matrix diag(y) - y y' is symmetric: forward mode multiplies by it as backward does
        (y,) = ctx.saved_tensors
        return _softmax_backward(x_tangent, y, y.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
        (x,) = batch_first(info.batch_size, in_dims[:1], x)
        return softmax(x, dtype), 0


class SoftmaxBackwardFunction(Function):
    """dx = y * (dy - sum(y * dy)), differentiable: ``apply(dy, y, dtype)``."""

    @staticmethod
    def forward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        return softmax_backward(dy, y, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, y, ctx.dtype = inputs
        ctx.save_for_backward(dy, y)
        ctx.save_for_forward(dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, Tensor, None]:
        dy, y = ctx.saved_tensors
        y_gradient = _derivative_in_y(ddx, dy, y) - _dot(ddx, y) * dy.to(compute_dtype(y.dtype))
        return _softmax_backward(ddx, y, dy.dtype), y_gradient.to(y.dtype), None

    @staticmethod
    def jvp(ctx: Any, dy_tangent: Tensor, y_tangent: Tensor, _: None) -> Tensor:
        dy, y = ctx.saved_tensors
        along_y = _derivative_in_y(y_tangent, dy, y) - _dot(dy, y_tangent) * y
        return _softmax_backward(dy_tangent, y, ctx.dtype) + along_y.to(ctx.dtype)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, dy: Tensor, y: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, int]:
        dy, y = batch_first(info.batch_size, in_dims[:2], dy, y)
        return _softmax_backward(dy, y, dtype), 0


class _SoftmaxTraced(WithoutForwardMode, SoftmaxFunction):
    pass


class _SoftmaxBackwardTraced(WithoutForwardMode, SoftmaxBackwardFunction):
    pass


def _derivative_in_y(v: Tensor, dy: Tensor, y: Tensor) -> Tensor:
    """The part of dx's derivative in y that either mode multiplies by: v * (dy - sum(dy * y))."""
    wide = compute_dtype(y.dtype)
    return v.to(wide) * (dy.to(wide) - _dot(dy, y))


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (u.to(compute_dtype(u.dtype)) * v).sum(-1, keepdim=True)
