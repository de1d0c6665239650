"""Softmax and log-softmax by PyTorch's own kernels where these apply.

PyTorch's backward kernels need one dtype for all tensors, and write their result as if it were
contiguous.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._cpu.blocks import row_blocks
from torch_softmax._cpu.results import empty_result
from torch_softmax._layout import rows_beside


def softmax_forward(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x))."""
    return torch.softmax(x, dim, dtype, out=empty_result(x.shape, dtype))


def softmax_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """dx = y * (dy - sum(y * dy))."""
    dx = empty_result(y.shape, dtype)
    if dy.dtype == y.dtype == dtype:
        torch.ops.aten._softmax_backward_data.out(dy, y, dim, dtype, grad_input=dx)
        return dx
    return _in_blocks(reference.softmax_backward, dx, dy, y, dim)


def log_softmax_forward(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x)))."""
    return torch.log_softmax(x, dim, dtype, out=empty_result(x.shape, dtype))


def log_softmax_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    dx = empty_result(y.shape, dtype)
    if dy.dtype == y.dtype == dtype:
        torch.ops.aten._log_softmax_backward_data.out(dy, y, dim, dtype, out=dx)
        return dx
    return _in_blocks(reference.log_softmax_backward, dx, dy, y, dim)


def _in_blocks(
    backward: Callable[..., Tensor], dx: Tensor, dy: Tensor, y: Tensor, dim: int
) -> Tensor:
    y_rows, dx_rows = rows_beside(y, dx, dim)
    dy_rows, _ = rows_beside(dy, dx, dim)
    for dx_block, dy_block, y_block in row_blocks(dx_rows, dy_rows, y_rows):
        dx_block.copy_(backward(dy_block, y_block, -1, dx.dtype))
    return dx
