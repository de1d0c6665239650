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
from triton_kernels.rows import load_tile, row_places, store_tile, tile_columns


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
    VECTOR: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - shift) / total."""
    places = row_places(n_rows, BLOCK_ROWS, x_strides, VECTOR)
    _, in_tile, words = tile_columns(0, places, n_cols, BLOCK_COLS, VECTOR)

    x = load_tile(x_ptr, x_strides, words, VECTOR).to(COMPUTE_DTYPE)
    # what lies beside the row adds exp(-inf) = 0 to the sum
    x = tl.where(in_tile, x, -float("inf"))
    x = x - finite_shift(tl.max(x, axis=1))[:, None]
    exp_x = tl.exp(x)
    total = tl.sum(exp_x, axis=1)[:, None]
    y = x - tl.log(total) if LOG else exp_x / total

    store_tile(y_ptr, y_strides, words, y, VECTOR)


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
    VECTOR: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - shift) / total, for rows longer than a block."""
    places = row_places(n_rows, BLOCK_ROWS, x_strides, VECTOR)
    largest = tl.full((BLOCK_ROWS,), -float("inf"), COMPUTE_DTYPE)
    total = tl.zeros((BLOCK_ROWS,), COMPUTE_DTYPE)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        _, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR)
        x = load_tile(x_ptr, x_strides, words, VECTOR, "evict_last").to(COMPUTE_DTYPE)
        x = tl.where(in_tile, x, -float("inf"))
        largest, total = fold_total(x, largest, total)

    shift = finite_shift(largest)[:, None]
    total = total[:, None]
    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        _, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR)
        x = load_tile(x_ptr, x_strides, words, VECTOR, "evict_first").to(COMPUTE_DTYPE) - shift
        y = x - tl.log(total) if LOG else tl.exp(x) / total
        store_tile(y_ptr, y_strides, words, y, VECTOR, "evict_first")


@triton.jit
def softmax_backward_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    n_rows,
    n_cols,
    strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG."""
    dy_strides, y_strides, dx_strides = strides
    places = row_places(n_rows, BLOCK_ROWS, y_strides, VECTOR)
    _, in_tile, words = tile_columns(0, places, n_cols, BLOCK_COLS, VECTOR)

    y = load_tile(y_ptr, y_strides, words, VECTOR).to(COMPUTE_DTYPE)
    dy = load_tile(dy_ptr, dy_strides, words, VECTOR).to(COMPUTE_DTYPE)
    total = tl.sum(tl.where(in_tile, dy if LOG else dy * y, 0.0), axis=1)[:, None]
    dx = dy - tl.exp(y) * total if LOG else y * (dy - total)

    store_tile(dx_ptr, dx_strides, words, dx, VECTOR)


@triton.jit
def softmax_backward_online_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    n_rows,
    n_cols,
    strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG."""
    dy_strides, y_strides, dx_strides = strides
    places = row_places(n_rows, BLOCK_ROWS, y_strides, VECTOR)
    total = tl.zeros((BLOCK_ROWS,), COMPUTE_DTYPE)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        _, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR)
        dy = load_tile(dy_ptr, dy_strides, words, VECTOR, "evict_last").to(COMPUTE_DTYPE)
        if not LOG:
            dy *= load_tile(y_ptr, y_strides, words, VECTOR, "evict_last").to(COMPUTE_DTYPE)
        total += tl.sum(tl.where(in_tile, dy, 0.0), axis=1)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        _, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR)
        y = load_tile(y_ptr, y_strides, words, VECTOR, "evict_first").to(COMPUTE_DTYPE)
        dy = load_tile(dy_ptr, dy_strides, words, VECTOR, "evict_first").to(COMPUTE_DTYPE)
        dx = dy - tl.exp(y) * total[:, None] if LOG else y * (dy - total[:, None])
        store_tile(dx_ptr, dx_strides, words, dx, VECTOR, "evict_first")
