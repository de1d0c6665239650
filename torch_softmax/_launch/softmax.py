"""Launchers of softmax and log-softmax."""

import torch
import triton.language as tl
from torch import Tensor

from torch_softmax._kernels.softmax import (
    softmax_backward_kernel,
    softmax_backward_online_kernel,
    softmax_forward_kernel,
    softmax_forward_online_kernel,
)
from torch_softmax._kernels.tiling import MAX_TILE_BYTES, WALK_BACKWARD, WALK_TWICE
from torch_softmax._launch.start import Rows
from torch_softmax._layout import compute_dtype, rows_beside


def launch_softmax_forward(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = softmax(x)."""
    return _launch_forward(x, dim, dtype, log=False)


def launch_softmax_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """dx = y * (dy - sum(y * dy))."""
    return _launch_backward(dy, y, dim, dtype, log=False)


def launch_log_softmax_forward(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = log(softmax(x))."""
    return _launch_forward(x, dim, dtype, log=True)


def launch_log_softmax_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    return _launch_backward(dy, y, dim, dtype, log=True)


def _launch_forward(x: Tensor, dim: int, dtype: torch.dtype, *, log: bool) -> Tensor:
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel() == 0:
        return y
    rows = Rows(*rows_beside(x, y, dim), held_values=1, walk=WALK_TWICE)
    x_rows, y_rows = rows.folded
    rows.start(
        softmax_forward_kernel if rows.col_blocks == 1 else softmax_forward_online_kernel,
        x_rows,
        y_rows,
        rows.n_rows,
        rows.n_cols,
        x_rows.stride(),
        y_rows.stride(),
        LANES=rows.lanes,
        COMPUTE_DTYPE=_triton_compute_dtype(x.dtype, dtype),
        LOG=log,
    )
    return y


def _launch_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype, *, log: bool) -> Tensor:
    dx = torch.empty(y.shape, dtype=dtype, device=y.device)
    if y.numel() == 0:
        return dx
    y_rows, dx_rows = rows_beside(y, dx, dim)
    dy_rows, _ = rows_beside(dy, dx, dim)
    rows = Rows(
        y_rows,
        dy_rows,
        dx_rows,
        held_values=2,
        max_tile_bytes=2 * MAX_TILE_BYTES,
        walk=WALK_BACKWARD,
    )
    y_rows, dy_rows, dx_rows = rows.folded
    rows.start(
        softmax_backward_kernel if rows.col_blocks == 1 else softmax_backward_online_kernel,
        dy_rows,
        y_rows,
        dx_rows,
        rows.n_rows,
        rows.n_cols,
        (dy_rows.stride(), y_rows.stride(), dx_rows.stride()),
        LANES=rows.lanes,
        COMPUTE_DTYPE=_triton_compute_dtype(y.dtype, dtype),
        LOG=log,
    )
    return dx


def _triton_compute_dtype(*dtypes: torch.dtype) -> tl.dtype:
    return tl.float64 if torch.float64 in map(compute_dtype, dtypes) else tl.float32
