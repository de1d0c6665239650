"""Softmax and log-softmax of rows, and their gradients.

Notation: p = exp(x - row_max) / sum_exp along a row, with row_max its largest value and sum_exp the
sum of exp(x - row_max). One program owns TILE.rows rows. The single-pass kernels hold whole rows in
one tile (TILE.cols >= n_cols) and read them once; the online kernels read longer rows twice, the
second time partly from the L2 cache. Arithmetic is in COMPUTE_DTYPE, whatever the storage dtype.
With LOG the operator is log-softmax: y = log(p).
"""

import triton
import triton.language as tl

from .arithmetic import exact_exp, exp, log
from .online_softmax import (
    as_partials,
    combine_partials,
    empty_partials,
    finite_max,
    load_logits,
    online_softmax_update,
    zero_partials,
)
from .tiles import column_tile, load_tile, row_block, store_tile


@triton.jit
def softmax_forward_kernel(
    x,
    y,
    n_rows,
    n_cols,
    TILE: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - row_max) / sum_exp, of rows that a tile holds."""
    rows = row_block(tl.program_id(0), n_rows, x, TILE)
    tile = column_tile(0, rows, n_cols, TILE)
    value = load_logits(x, tile, True, COMPUTE_DTYPE, TILE)
    value = value - finite_max(tl.max(value, axis=1))[:, None]
    exp_x = exp(value)
    sum_exp = tl.sum(exp_x, axis=1)[:, None]
    p = value - log(sum_exp) if LOG else exp_x * (1.0 / sum_exp)
    store_tile(y, tile, p, TILE)


@triton.jit
def softmax_forward_online_kernel(
    x,
    y,
    n_rows,
    n_cols,
    TILE: tl.constexpr,
    N_PARTIALS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """y = exp(x - row_max) / sum_exp, of rows longer than a tile."""
    rows = row_block(tl.program_id(0), n_rows, x, TILE)
    partials = empty_partials(TILE.rows, N_PARTIALS, COMPUTE_DTYPE)
    for start in range(0, n_cols + TILE.vec_size - 1, TILE.cols):
        tile = column_tile(start, rows, n_cols, TILE)
        is_edge = (start == 0) | (start + TILE.cols > n_cols)
        value = load_logits(x, tile, is_edge, COMPUTE_DTYPE, TILE, EVICTION="evict_last")
        partials = online_softmax_update(partials, as_partials(value, N_PARTIALS))

    stats = combine_partials(partials)
    row_max = stats.row_max[:, None]
    log_sum_exp = stats.log_sum_exp[:, None]
    factor = (1.0 / stats.sum_exp)[:, None]
    # in reverse order: the L2 cache most likely still holds the blocks read last
    n_blocks = tl.cdiv(n_cols + TILE.vec_size - 1, TILE.cols)
    for block in range(n_blocks):
        tile = column_tile((n_blocks - 1 - block) * TILE.cols, rows, n_cols, TILE)
        value = load_tile(x, tile, TILE, "evict_first").to(COMPUTE_DTYPE) - row_max
        p = value - log_sum_exp if LOG else exp(value) * factor
        store_tile(y, tile, p, TILE, "evict_first")


@triton.jit
def softmax_backward_kernel(
    dy,
    y,
    dx,
    n_rows,
    n_cols,
    TILE: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG, of rows that a tile holds."""
    rows = row_block(tl.program_id(0), n_rows, y, TILE)
    tile = column_tile(0, rows, n_cols, TILE)
    result = load_tile(y, tile, TILE).to(COMPUTE_DTYPE)
    gradient = load_tile(dy, tile, TILE).to(COMPUTE_DTYPE)
    summand = gradient if LOG else gradient * result
    if TILE.unaligned_rows:
        summand = tl.where(tile.in_row, summand, 0.0)
    total = tl.sum(summand, axis=1)[:, None]
    value = gradient - exact_exp(result) * total if LOG else result * (gradient - total)
    store_tile(dx, tile, value, TILE)


@triton.jit
def softmax_backward_online_kernel(
    dy,
    y,
    dx,
    n_rows,
    n_cols,
    TILE: tl.constexpr,
    N_PARTIALS: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
    LOG: tl.constexpr,
):
    """dx = y * (dy - sum(y * dy)), or dy - exp(y) * sum(dy) with LOG, of longer rows."""
    rows = row_block(tl.program_id(0), n_rows, y, TILE)
    partials = zero_partials(TILE.rows, N_PARTIALS, COMPUTE_DTYPE)
    for start in range(0, n_cols + TILE.vec_size - 1, TILE.cols):
        tile = column_tile(start, rows, n_cols, TILE)
        summand = load_tile(dy, tile, TILE, "evict_last").to(COMPUTE_DTYPE)
        if not LOG:
            summand *= load_tile(y, tile, TILE, "evict_last").to(COMPUTE_DTYPE)
        if TILE.unaligned_rows:
            summand = tl.where(tile.in_row, summand, 0.0)
        partials += tl.sum(as_partials(summand, N_PARTIALS), axis=2)

    total = tl.sum(partials, axis=1)[:, None]
    # in reverse order: the L2 cache most likely still holds the blocks read last
    n_blocks = tl.cdiv(n_cols + TILE.vec_size - 1, TILE.cols)
    for block in range(n_blocks):
        tile = column_tile((n_blocks - 1 - block) * TILE.cols, rows, n_cols, TILE)
        result = load_tile(y, tile, TILE, "evict_first").to(COMPUTE_DTYPE)
        gradient = load_tile(dy, tile, TILE, "evict_first").to(COMPUTE_DTYPE)
        value = gradient - exact_exp(result) * total if LOG else result * (gradient - total)
        store_tile(dx, tile, value, TILE, "evict_first")
