"""Softmax and log-softmax of rows, and their gradients.

Notation: p = exp(x - shift) / total along a row, with shift its largest value and total the sum of
exp(x - shift). One program owns BLOCK_ROWS rows. The plain kernels hold whole rows in one block
(BLOCK_COLS >= n_cols) and read them once; the online kernels walk longer rows twice, and the
second walk finds some of what the first has read in the L2 cache. Arithmetic is in COMPUTE_DTYPE
whatever is stored. With LOG the operator is log-softmax: y = log(p).
"""

import triton
import triton.language as tl

from .online import (
    exact_exp,
    exp,
    finite_shift,
    fold_total,
    in_lanes,
    load_logits,
    log,
    merge_lanes,
)
from .rows import load_tile, row_places, store_tile, tile_columns


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
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - shift) / total."""
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, x_strides, VECTOR)
    _, _, words = tile_columns(0, places, n_cols, BLOCK_COLS, VECTOR, ENDS)

    x = load_logits(x_ptr, x_strides, words, True, COMPUTE_DTYPE, VECTOR, ENDS, (1.0, None))
    x = x - finite_shift(tl.max(x, axis=1))[:, None]
    exp_x = exp(x)
    total = tl.sum(exp_x, axis=1)[:, None]
    y = x - log(total) if LOG else exp_x * (1.0 / total)

    store_tile(y_ptr, y_strides, words, y, VECTOR, ENDS)


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
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - shift) / total, for rows longer than a block."""
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, x_strides, VECTOR)
    largest = tl.full((BLOCK_ROWS, LANES), -float("inf"), COMPUTE_DTYPE)
    total = tl.zeros((BLOCK_ROWS, LANES), COMPUTE_DTYPE)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        _, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
        is_edge = (start == 0) | (start + BLOCK_COLS > n_cols)
        x = load_logits(
            x_ptr, x_strides, words, is_edge, COMPUTE_DTYPE, VECTOR, ENDS, (1.0, None), "evict_last"
        )
        largest, total = fold_total(in_lanes(x, LANES), largest, total)

    _row_largest, shift, total, log_total = merge_lanes(largest, total)
    shift = shift[:, None]
    log_total = log_total[:, None]
    factor = (1.0 / total)[:, None]
    # the other way round: what was read last is most likely to be in the cache
    n_blocks = tl.cdiv(n_cols + VECTOR - 1, BLOCK_COLS)
    for block in range(n_blocks):
        start = (n_blocks - 1 - block) * BLOCK_COLS
        _, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
        x = load_tile(x_ptr, x_strides, words, VECTOR, "evict_first").to(COMPUTE_DTYPE)
        y = (x - shift) - log_total if LOG else exp(x - shift) * factor
        store_tile(y_ptr, y_strides, words, y, VECTOR, ENDS, "evict_first")


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
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG."""
    dy_strides, y_strides, dx_strides = strides
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, y_strides, VECTOR)
    _, in_tile, words = tile_columns(0, places, n_cols, BLOCK_COLS, VECTOR, ENDS)

    y = load_tile(y_ptr, y_strides, words, VECTOR).to(COMPUTE_DTYPE)
    dy = load_tile(dy_ptr, dy_strides, words, VECTOR).to(COMPUTE_DTYPE)
    summand = dy if LOG else dy * y
    if ENDS:
        summand = tl.where(in_tile, summand, 0.0)
    total = tl.sum(summand, axis=1)[:, None]
    dx = dy - exact_exp(y) * total if LOG else y * (dy - total)

    store_tile(dx_ptr, dx_strides, words, dx, VECTOR, ENDS)


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
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG."""
    dy_strides, y_strides, dx_strides = strides
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, y_strides, VECTOR)
    total = tl.zeros((BLOCK_ROWS, LANES), COMPUTE_DTYPE)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        _, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
        dy = load_tile(dy_ptr, dy_strides, words, VECTOR, "evict_last").to(COMPUTE_DTYPE)
        if not LOG:
            dy *= load_tile(y_ptr, y_strides, words, VECTOR, "evict_last").to(COMPUTE_DTYPE)
        if ENDS:
            dy = tl.where(in_tile, dy, 0.0)
        total += tl.sum(in_lanes(dy, LANES), axis=2)

    total = tl.sum(total, axis=1)
    # the other way round: what was read last is most likely to be in the cache
    n_blocks = tl.cdiv(n_cols + VECTOR - 1, BLOCK_COLS)
    for block in range(n_blocks):
        start = (n_blocks - 1 - block) * BLOCK_COLS
        _, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
        y = load_tile(y_ptr, y_strides, words, VECTOR, "evict_first").to(COMPUTE_DTYPE)
        dy = load_tile(dy_ptr, dy_strides, words, VECTOR, "evict_first").to(COMPUTE_DTYPE)
        dx = dy - exact_exp(y) * total[:, None] if LOG else y * (dy - total[:, None])
        store_tile(dx_ptr, dx_strides, words, dx, VECTOR, ENDS, "evict_first")
