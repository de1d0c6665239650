"""Cross-entropy of rows of logits against a class index per row, and its gradient in the same pass.

The notation and contract are those of :mod:`triton_kernels.cross_entropy`. The loss is the sum over
rows of b * nll + s * smooth + z * lse**2, with coefficients that are known before the pass, so that

    dlogits = a * p - b * onehot(target) - s * class_weight
    a = b + s * sum(class_weight) + 2 * z * lse

The plain kernel holds whole rows in one block and reads them once; the online kernel walks longer
rows twice, and the second walk finds in the L2 cache what the first has read. A row whose
coefficients are 0 has no gradient, whatever NaN it holds.
"""

import triton
import triton.language as tl

from triton_kernels.online import capped, finite_shift, fold_cost, fold_total, slope
from triton_kernels.rows import (
    load_columns,
    load_targets,
    load_tile,
    row_places,
    store_tile,
    tile_columns,
)


@triton.jit
def coefficients(b_ptr, s_ptr, z_ptr, index, in_rows):
    """b, s and z of each row, 0 for those that are not wanted."""
    b = tl.load(b_ptr + index, mask=in_rows, other=0.0)
    s = tl.zeros_like(b)
    z = tl.zeros_like(b)
    if s_ptr is not None:
        s = tl.load(s_ptr + index, mask=in_rows, other=0.0)
    if z_ptr is not None:
        z = tl.load(z_ptr + index, mask=in_rows, other=0.0)
    return b, s, z


@triton.jit
def dlogits_tile(logits, p, is_target, weight, row_values, CAP: tl.constexpr):
    """(a * p - b * onehot(target) - s * class_weight) * slope in the rows that cost something."""
    a, b, s, costs = row_values
    dlogits = a[:, None] * p - tl.where(is_target, b[:, None], 0.0)
    if weight is not None:
        dlogits -= s[:, None] * weight
    return tl.where(costs[:, None], dlogits * slope(logits, CAP), 0.0)


@triton.jit
def cross_entropy_step_kernel(
    logits_ptr,
    target_ptr,
    class_weight_ptr,
    row_ptrs,
    dlogits_ptr,
    n_rows,
    n_cols,
    strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    CAP: tl.constexpr,
):
    """nll, smooth and lse of each row, and dlogits of the sum that b, s and z make of them."""
    nll_ptr, smooth_ptr, lse_ptr, b_ptr, s_ptr, z_ptr = row_ptrs
    logits_strides, dlogits_strides = strides
    places = row_places(n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    cols, in_tile, words = tile_columns(0, places, n_cols, BLOCK_COLS, VECTOR)
    index = outer * n_rows + rows
    dtype: tl.constexpr = nll_ptr.dtype.element_ty
    b, s, z = coefficients(b_ptr, s_ptr, z_ptr, index, in_rows)
    target = tl.load(target_ptr + index, mask=in_rows, other=0)
    is_class = in_rows & (target >= 0) & (target < n_cols)
    is_target = cols == target.to(tl.int32)[:, None]

    # read once more instead of searched, which would take a register for each logit
    target_logit = load_targets(logits_ptr, logits_strides, outer, rows, target, is_class).to(dtype)
    # in place a thread may not write before another has read
    tl.debug_barrier()
    logits = load_tile(logits_ptr, logits_strides, words, VECTOR).to(dtype)
    # after the softcap, which would lift it: what lies beside the row adds exp(-inf) = 0
    x = tl.where(in_tile, capped(logits, CAP), -float("inf"))
    shift = finite_shift(tl.max(x, axis=1))
    exp_x = tl.exp(x - shift[:, None])
    total = tl.sum(exp_x, axis=1)
    log_total = tl.log(total)
    nll = (shift - capped(target_logit, CAP)) + log_total
    a = tl.where(is_class, b, float("nan")) + 2.0 * z * (shift + log_total)
    weight = None
    if class_weight_ptr is not None:
        weight = load_columns(class_weight_ptr, cols, n_cols)
        # without weight no cost, even at -inf: 0 * inf would be NaN
        cost = tl.sum(tl.where(weight != 0.0, weight * (shift[:, None] - x), 0.0), axis=1)
        weight_total = tl.sum(weight, axis=1)
        tl.store(smooth_ptr + index, cost + weight_total * log_total, mask=in_rows)
        a += s * weight_total
    tl.store(nll_ptr + index, nll, mask=in_rows)
    tl.store(lse_ptr + index, shift + log_total, mask=in_rows)

    row_values = (a / total, b, s, (b != 0.0) | (s != 0.0) | (z != 0.0))
    dlogits = dlogits_tile(logits, exp_x, is_target, weight, row_values, CAP)
    store_tile(dlogits_ptr, dlogits_strides, words, dlogits, VECTOR)


@triton.jit
def cross_entropy_step_online_kernel(
    logits_ptr,
    target_ptr,
    class_weight_ptr,
    row_ptrs,
    dlogits_ptr,
    n_rows,
    n_cols,
    strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    CAP: tl.constexpr,
):
    """nll, smooth, lse and dlogits as of the plain kernel, for rows longer than a block."""
    nll_ptr, smooth_ptr, lse_ptr, b_ptr, s_ptr, z_ptr = row_ptrs
    logits_strides, dlogits_strides = strides
    places = row_places(n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    index = outer * n_rows + rows
    dtype: tl.constexpr = nll_ptr.dtype.element_ty
    b, s, z = coefficients(b_ptr, s_ptr, z_ptr, index, in_rows)
    target = tl.load(target_ptr + index, mask=in_rows, other=0)
    largest = tl.full((BLOCK_ROWS,), -float("inf"), dtype)
    total = tl.zeros((BLOCK_ROWS,), dtype)
    target_logit = tl.zeros((BLOCK_ROWS,), dtype)
    smooth = tl.zeros((BLOCK_ROWS,), dtype)
    weight_total = tl.zeros((BLOCK_ROWS,), dtype)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        cols, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR)
        logits = load_tile(logits_ptr, logits_strides, words, VECTOR, "evict_last").to(dtype)
        x = tl.where(in_tile, capped(logits, CAP), -float("inf"))
        old_largest = largest
        largest, total = fold_total(x, largest, total)
        target_logit += tl.sum(tl.where(cols == target.to(tl.int32)[:, None], x, 0.0), axis=1)
        if class_weight_ptr is not None:
            weight = load_columns(class_weight_ptr, cols, n_cols)
            smooth, weight_total = fold_cost(weight, x, old_largest, largest, smooth, weight_total)

    shift = finite_shift(largest)
    log_total = tl.log(total)
    is_class = (target >= 0) & (target < n_cols)
    nll = tl.where(is_class, (shift - target_logit) + log_total, float("nan"))
    a = tl.where(is_class, b, float("nan")) + 2.0 * z * (shift + log_total)
    if class_weight_ptr is not None:
        tl.store(smooth_ptr + index, smooth + weight_total * log_total, mask=in_rows)
        a += s * weight_total
    tl.store(nll_ptr + index, nll, mask=in_rows)
    tl.store(lse_ptr + index, shift + log_total, mask=in_rows)

    row_values = (a / total, b, s, (b != 0.0) | (s != 0.0) | (z != 0.0))
    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        cols, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR)
        logits = load_tile(logits_ptr, logits_strides, words, VECTOR, "evict_first").to(dtype)
        exp_x = tl.exp(capped(logits, CAP) - shift[:, None])
        is_target = cols == target.to(tl.int32)[:, None]
        weight = None if class_weight_ptr is None else load_columns(class_weight_ptr, cols, n_cols)
        dlogits = dlogits_tile(logits, exp_x, is_target, weight, row_values, CAP)
        store_tile(dlogits_ptr, dlogits_strides, words, dlogits, VECTOR, "evict_first")
