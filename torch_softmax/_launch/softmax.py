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
from torch_softmax._kernels.tiling import (
    CLUSTER_COLS,
    MAX_TILE_BYTES,
    READ_TWICE,
    READ_TWICE_FLOAT64,
    READ_TWICE_TWO_MATRICES,
)
from torch_softmax._launch.schedule import Kernel, Limits, Rows
from torch_softmax._layout import compute_dtype, empty_contiguous_like, rows_beside

FORWARD = Limits(live_values=1, online=READ_TWICE, cluster_cols=2 * CLUSTER_COLS)
FORWARD_FLOAT64 = Limits(live_values=1, online=READ_TWICE_FLOAT64)
BACKWARD = Limits(
    live_values=2,
    max_tile_bytes=2 * MAX_TILE_BYTES,
    online=READ_TWICE_TWO_MATRICES,
    cluster_cols=CLUSTER_COLS,
)


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
    y = empty_contiguous_like(x, dtype)
    if x.numel():
        limits = FORWARD_FLOAT64 if torch.float64 in (x.dtype, dtype) else FORWARD
        rows = Rows(*rows_beside(x, y, dim), limits=limits)
        kernels = softmax_forward_kernel, softmax_forward_online_kernel
        _launch(rows, *kernels, *rows.matrices, dtypes=(x.dtype, dtype), log=log)
    return y


def _launch_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype, *, log: bool) -> Tensor:
    dx = empty_contiguous_like(y, dtype)
    if y.numel():
        y_rows, dx_rows = rows_beside(y, dx, dim)
        dy_rows, _ = rows_beside(dy, dx, dim)
        rows = Rows(y_rows, dy_rows, dx_rows, limits=BACKWARD)
        y_matrix, dy_matrix, dx_matrix = rows.matrices
        kernels = softmax_backward_kernel, softmax_backward_online_kernel
        _launch(rows, *kernels, dy_matrix, y_matrix, dx_matrix, dtypes=(y.dtype, dtype), log=log)
    return dx


def _launch(
    rows: Rows,
    kernel: Kernel,
    online_kernel: Kernel,
    *matrices: object,
    dtypes: tuple[torch.dtype, torch.dtype],
    log: bool,
) -> None:
    is_float64 = torch.float64 in map(compute_dtype, dtypes)
    constexprs = {"COMPUTE_DTYPE": tl.float64 if is_float64 else tl.float32, "LOG": log}
    if rows.schedule.col_blocks > 1:
        kernel, constexprs["N_PARTIALS"] = online_kernel, rows.schedule.n_partials
    rows.launch(kernel, *matrices, rows.n_rows, rows.n_cols, **constexprs)
