"""Softmax and log-softmax of rows, and their gradients.

Notation: p = exp(x - shift) / total along a row, with shift its largest value and total the sum of
exp(x - shift). One program owns BLOCK_ROWS rows. The plain kernels hold whole rows in one block
(BLOCK_COLS >= n_cols) and read them once; the online kernels walk longer rows twice, and the
second walk finds in the L2 cache what the first has read. Arithmetic is in COMPUTE_DTYPE whatever
is stored. With LOG the operator is log-softmax: y = log(p).
"""

import triton
import triton.language as tl

from triton_kernels.online import finite_shift, fold_total
from triton_kernels.rows import program_rows, tile_offsets


@triton.jit
def softmax_forward_kernel(
    x_ptr,
    y_ptr,
    n_rows,
    n_cols,
    x_strides,
    y_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - shift) / total."""
    outer, rows = program_rows(n_rows, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_COLS)
    in_tile = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]

    # columns beyond the row load as -inf and add exp(-inf) = 0 to the sum
    x_offsets = tile_offsets(outer, rows, cols, x_strides)
    x = tl.load(x_ptr + x_offsets, mask=in_tile, other=-float("inf")).to(COMPUTE_DTYPE)
    x = x - finite_shift(tl.max(x, axis=1))[:, None]
    exp_x = tl.exp(x)
    total = tl.sum(exp_x, axis=1)[:, None]
    y = x - tl.log(total) if LOG else exp_x / total

    tl.store(y_ptr + tile_offsets(outer, rows, cols, y_strides), y, mask=in_tile)


@triton.jit
def softmax_forward_online_kernel(
    x_ptr,
    y_ptr,
    n_rows,
    n_cols,
    x_strides,
    y_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - shift) / total, for rows longer than a block."""
    outer, rows = program_rows(n_rows, BLOCK_ROWS)
    in_rows = (rows < n_rows)[:, None]
    largest = tl.full((BLOCK_ROWS,), -float("inf"), COMPUTE_DTYPE)
    total = tl.zeros((BLOCK_ROWS,), COMPUTE_DTYPE)

    for start in range(0, n_cols, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        in_tile = in_rows & (cols < n_cols)[None, :]
        x_offsets = tile_offsets(outer, rows, cols, x_strides)
        x = tl.load(x_ptr + x_offsets, mask=in_tile, other=-float("inf")).to(COMPUTE_DTYPE)
        largest, total = fold_total(x, largest, total)

    shift = finite_shift(largest)[:, None]
    total = total[:, None]
    for start in range(0, n_cols, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        in_tile = in_rows & (cols < n_cols)[None, :]
        x_offsets = tile_offsets(outer, rows, cols, x_strides)
        x = tl.load(x_ptr + x_offsets, mask=in_tile, other=0.0).to(COMPUTE_DTYPE) - shift
        y = x - tl.log(total) if LOG else tl.exp(x) / total
        tl.store(y_ptr + tile_offsets(outer, rows, cols, y_strides), y, mask=in_tile)


@triton.jit
def softmax_backward_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    n_rows,
    n_cols,
    dy_strides,
    y_strides,
    dx_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG."""
    outer, rows = program_rows(n_rows, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_COLS)
    in_tile = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]

    y_offsets = tile_offsets(outer, rows, cols, y_strides)
    dy_offsets = tile_offsets(outer, rows, cols, dy_strides)
    y = tl.load(y_ptr + y_offsets, mask=in_tile, other=0.0).to(COMPUTE_DTYPE)
    dy = tl.load(dy_ptr + dy_offsets, mask=in_tile, other=0.0).to(COMPUTE_DTYPE)
    total = tl.sum(dy if LOG else dy * y, axis=1)[:, None]
    dx = dy - tl.exp(y) * total if LOG else y * (dy - total)

    tl.store(dx_ptr + tile_offsets(outer, rows, cols, dx_strides), dx, mask=in_tile)


@triton.jit
def softmax_backward_online_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    n_rows,
    n_cols,
    dy_strides,
    y_strides,
    dx_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG."""
    outer, rows = program_rows(n_rows, BLOCK_ROWS)
    in_rows = (rows < n_rows)[:, None]
    total = tl.zeros((BLOCK_ROWS,), COMPUTE_DTYPE)

    for start in range(0, n_cols, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        in_tile = in_rows & (cols < n_cols)[None, :]
        dy_offsets = tile_offsets(outer, rows, cols, dy_strides)
        dy = tl.load(dy_ptr + dy_offsets, mask=in_tile, other=0.0).to(COMPUTE_DTYPE)
        if not LOG:
            y_offsets = tile_offsets(outer, rows, cols, y_strides)
            dy *= tl.load(y_ptr + y_offsets, mask=in_tile, other=0.0).to(COMPUTE_DTYPE)
        total += tl.sum(dy, axis=1)

    for start in range(0, n_cols, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        in_tile = in_rows & (cols < n_cols)[None, :]
        y_offsets = tile_offsets(outer, rows, cols, y_strides)
        dy_offsets = tile_offsets(outer, rows, cols, dy_strides)
        y = tl.load(y_ptr + y_offsets, mask=in_tile, other=0.0).to(COMPUTE_DTYPE)
        dy = tl.load(dy_ptr + dy_offsets, mask=in_tile, other=0.0).to(COMPUTE_DTYPE)
        dx = dy - tl.exp(y) * total[:, None] if LOG else y * (dy - total[:, None])
        tl.store(dx_ptr + tile_offsets(outer, rows, cols, dx_strides), dx, mask=in_tile)
