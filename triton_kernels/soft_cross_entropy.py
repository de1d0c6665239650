"""Cross-entropy of rows of logits against a probability per class, and its gradient.

The notation and contract are those of :mod:`triton_kernels.cross_entropy`, with w for the class
weights or 1. Here nll = sum(w * target * (lse - logits)), where a class without weight or
probability costs nothing, whatever its logit, and target_weight = sum(w * target). The gradient is

    dlogits = (a - e * log(p)) * p - b * w * target - s * class_weight

where a contains b * target_weight.
"""

import triton
import triton.language as tl

from .online import (
    capped,
    fold_cost,
    fold_prediction,
    fold_product,
    fold_total,
    in_lanes,
    load_logits,
    log_probabilities,
    merge_cost,
    merge_lanes,
    merge_prediction,
    merge_product,
    slope,
    weigh_probabilities,
)
from .rows import (
    load_columns,
    load_tile,
    row_places,
    store_tile,
    tile_columns,
)


@triton.jit
def soft_cross_entropy_forward_kernel(
    logits_ptr,
    target_ptr,
    class_weight_ptr,
    row_ptrs,
    n_rows,
    n_cols,
    logits_strides,
    target_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    CAP: tl.constexpr,
):
    """nll = sum(w * target * (lse - logits)), smooth = sum(class_weight * (lse - logits))."""
    (
        nll_ptr,
        smooth_ptr,
        softmax_stats_ptr,
        lse_ptr,
        entropy_ptr,
        prediction_ptr,
        target_weight_ptr,
    ) = row_ptrs
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    dtype: tl.constexpr = nll_ptr.dtype.element_ty
    largest = tl.full((BLOCK_ROWS, LANES), -float("inf"), dtype)
    total = tl.zeros((BLOCK_ROWS, LANES), dtype)
    nll = tl.zeros((BLOCK_ROWS, LANES), dtype)
    target_weight = tl.zeros((BLOCK_ROWS, LANES), dtype)
    smooth = tl.zeros((BLOCK_ROWS, LANES), dtype)
    weight_total = tl.zeros((BLOCK_ROWS, LANES), dtype)
    product = tl.zeros((BLOCK_ROWS, LANES), dtype)
    prediction = tl.zeros((BLOCK_ROWS, LANES), tl.int32)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        cols, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
        is_edge = (start == 0) | (start + BLOCK_COLS > n_cols)
        x = load_logits(logits_ptr, logits_strides, words, is_edge, dtype, VECTOR, ENDS, CAP)
        x = in_lanes(x, LANES)
        old_largest = largest
        old_total = total
        largest, total = fold_total(x, largest, total)
        share = load_tile(target_ptr, target_strides, words, VECTOR)
        share = in_lanes(tl.where(in_tile, share, 0.0).to(dtype), LANES)
        if class_weight_ptr is not None:
            weight = in_lanes(load_columns(class_weight_ptr, cols, n_cols), LANES)
            smooth, weight_total = fold_cost(weight, x, old_largest, largest, smooth, weight_total)
            share *= weight
        nll, target_weight = fold_cost(share, x, old_largest, largest, nll, target_weight)
        if entropy_ptr is not None:
            product = fold_product(x, old_largest, largest, old_total, product)
            prediction = fold_prediction(x, in_lanes(cols, LANES), old_largest, prediction)

    row_largest, shift, row_total, log_total = merge_lanes(largest, total)
    nll, target_weight = merge_cost(largest, nll, target_weight, shift)
    index = outer * n_rows + rows
    tl.store(nll_ptr + index, nll + target_weight * log_total, mask=in_rows)
    tl.store(target_weight_ptr + index, target_weight, mask=in_rows)
    tl.store(softmax_stats_ptr + 2 * index, shift, mask=in_rows)
    tl.store(softmax_stats_ptr + 2 * index + 1, log_total, mask=in_rows)
    tl.store(lse_ptr + index, shift + log_total, mask=in_rows)
    if class_weight_ptr is not None:
        smooth, weight_total = merge_cost(largest, smooth, weight_total, shift)
        tl.store(smooth_ptr + index, smooth + weight_total * log_total, mask=in_rows)
    if entropy_ptr is not None:
        product = merge_product(largest, total, product, shift)
        tl.store(entropy_ptr + index, log_total - product / row_total, mask=in_rows)
        prediction = merge_prediction(largest, prediction, row_largest)
        tl.store(prediction_ptr + index, prediction, mask=in_rows)


@triton.jit
def soft_cross_entropy_backward_kernel(
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
    ENDS: tl.constexpr,
    CAP: tl.constexpr,
):
    """dlogits = (a - e * log(p)) * p - b * w * target - s * class_weight, times the slope."""
    softmax_stats_ptr, a_ptr, b_ptr, s_ptr, e_ptr = row_ptrs
    logits_strides, target_strides, dlogits_strides = strides
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    start = tl.program_id(1) * BLOCK_COLS
    cols, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
    index = outer * n_rows + rows

    a = tl.load(a_ptr + index, mask=in_rows, other=0.0)
    b = tl.load(b_ptr + index, mask=in_rows, other=0.0)
    logits = load_tile(logits_ptr, logits_strides, words, VECTOR).to(a.dtype)
    log_p = log_probabilities(capped(logits, CAP), softmax_stats_ptr, index, in_rows)
    dlogits = weigh_probabilities(log_p, a, e_ptr, index, in_rows)
    share = load_tile(target_ptr, target_strides, words, VECTOR).to(a.dtype)
    share *= b[:, None]
    if s_ptr is not None:
        share += tl.load(s_ptr + index, mask=in_rows, other=0.0)[:, None]
    if class_weight_ptr is not None:
        share *= load_columns(class_weight_ptr, cols, n_cols)
    dlogits = (dlogits - share) * slope(logits, CAP)

    store_tile(dlogits_ptr, dlogits_strides, words, dlogits, VECTOR, ENDS)
