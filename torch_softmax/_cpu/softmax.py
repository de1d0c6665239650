"""Softmax and log-softmax.

PyTorch's own kernels compute them where they can. Backward, those take one dtype for all, and write
a result as if it were contiguous.
"""

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._cpu.blocks import row_blocks
from torch_softmax._cpu.results import empty_result_like


def softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x))."""
    return torch.softmax(x, -1, dtype, out=empty_result_like(x, dtype))


def softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = y * (dy - sum(y * dy))."""
    dx = empty_result_like(y, dtype)
    if dy.dtype == y.dtype == dtype and dx.is_contiguous():
        torch.ops.aten._softmax_backward_data.out(dy, y, -1, dtype, grad_input=dx)
        return dx
    for dx_block, dy_block, y_block in row_blocks(dx, dy, y):
        dx_block.copy_(reference.softmax_backward(dy_block, y_block, dtype))
    return dx


def log_softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x)))."""
    return torch.log_softmax(x, -1, dtype, out=empty_result_like(x, dtype))


def log_softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    dx = empty_result_like(y, dtype)
    if dy.dtype == y.dtype == dtype and dx.is_contiguous():
        torch.ops.aten._log_softmax_backward_data.out(dy, y, -1, dtype, out=dx)
        return dx
    for dx_block, dy_block, y_block in row_blocks(dx, dy, y):
        dx_block.copy_(reference.log_softmax_backward(dy_block, y_block, dtype))
    return dx
