"""Cross-entropy of rows of logits against a class index per row, and its gradient.

Notation, along a row: shift is the largest logit, log_total = log(sum(exp(logits - shift))), and
lse = shift + log_total. The two are kept apart, as ``softmax_stats``, because their rounded sum
would lose the small one: logits near 10,000 would leave a float32 loss three correct digits.

A row has two losses, each without its factor: nll = lse - logits[target], and what label smoothing
adds, smooth = sum(class_weight * (lse - logits)); and two statistics, lse and entropy. Every option
of a cross-entropy is a function of these four per row, so the gradient is always

    dlogits = (a - e * log(p)) * p - b * onehot(target) - s * class_weight

with p = softmax(logits) and coefficients per row; a contains -e * entropy. CAP acts on
the logits as they are loaded, and by their slope on the gradient as it is stored.

One program owns BLOCK_ROWS rows; the forward kernel walks along them, the backward kernel takes
one block of columns. Vectors with one entry per row are contiguous; one that is None is not wanted.
Arithmetic is in the dtype of nll and of the coefficients. A target outside [0, n_cols) makes its
row's nll and gradient NaN and never reads outside the row.
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
    load_targets,
    load_tile,
    row_places,
    store_tile,
    tile_columns,
)


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr,
    target_ptr,
    class_weight_ptr,
    row_ptrs,
    n_rows,
    n_cols,
    logits_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    CAP: tl.constexpr,
):
    """nll = lse - logits[target], smooth = sum(class_weight * (lse - logits)), and statistics."""
    nll_ptr, smooth_ptr, softmax_stats_ptr, lse_ptr, entropy_ptr, prediction_ptr = row_ptrs
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    dtype: tl.constexpr = nll_ptr.dtype.element_ty
    largest = tl.full((BLOCK_ROWS, LANES), -float("inf"), dtype)
    total = tl.zeros((BLOCK_ROWS, LANES), dtype)
    smooth = tl.zeros((BLOCK_ROWS, LANES), dtype)
    weight_total = tl.zeros((BLOCK_ROWS, LANES), dtype)
    product = tl.zeros((BLOCK_ROWS, LANES), dtype)
    prediction = tl.zeros((BLOCK_ROWS, LANES), tl.int32)

    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        cols, _in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
        is_edge = (start == 0) | (start + BLOCK_COLS > n_cols)
        x = load_logits(logits_ptr, logits_strides, words, is_edge, dtype, VECTOR, ENDS, CAP)
        x = in_lanes(x, LANES)
        old_largest = largest
        old_total = total
        largest, total = fold_total(x, largest, total)
        if class_weight_ptr is not None:
            weight = in_lanes(load_columns(class_weight_ptr, cols, n_cols), LANES)
            smooth, weight_total = fold_cost(weight, x, old_largest, largest, smooth, weight_total)
        if entropy_ptr is not None:
            product = fold_product(x, old_largest, largest, old_total, product)
            prediction = fold_prediction(x, in_lanes(cols, LANES), old_largest, prediction)

    row_largest, shift, row_total, log_total = merge_lanes(largest, total)
    index = outer * n_rows + rows
    target = tl.load(target_ptr + index, mask=in_rows, other=0)
    is_class = in_rows & (target >= 0) & (target < n_cols)
    target_logit = load_targets(logits_ptr, logits_strides, outer, rows, target, is_class).to(dtype)
    nll = (shift - capped(target_logit, CAP)) + log_total

    tl.store(nll_ptr + index, nll, mask=in_rows)
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
def cross_entropy_backward_kernel(
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
    """dlogits = (a - e * log(p)) * p - b * onehot(target) - s * class_weight, times the slope."""
    softmax_stats_ptr, a_ptr, b_ptr, s_ptr, e_ptr = row_ptrs
    logits_strides, dlogits_strides = strides
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    start = tl.program_id(1) * BLOCK_COLS
    cols, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
    index = outer * n_rows + rows

    a = tl.load(a_ptr + index, mask=in_rows, other=0.0)
    b = tl.load(b_ptr + index, mask=in_rows, other=0.0)
    target = tl.load(target_ptr + index, mask=in_rows, other=0)
    is_class = (target >= 0) & (target < n_cols)
    a = tl.where(is_class | (b == 0.0), a, float("nan"))

    # a row that costs nothing is not read, so that not even a NaN in it has a gradient
    costs = in_rows & (a != 0.0)
    if e_ptr is not None:
        costs = in_rows
    # many rows to a program may share words, which a mask of rows would divide
    wanted_rows = costs if BLOCK_ROWS < 32 else None
    logits = load_tile(logits_ptr, logits_strides, words, VECTOR, wanted_rows=wanted_rows)
    logits = tl.where(costs[:, None], logits.to(a.dtype), 0.0)
    log_p = log_probabilities(capped(logits, CAP), softmax_stats_ptr, index, costs)
    dlogits = weigh_probabilities(log_p, a, e_ptr, index, in_rows)
    dlogits -= tl.where(cols == target[:, None], b[:, None], 0.0)
    if s_ptr is not None:
        s = tl.load(s_ptr + index, mask=in_rows, other=0.0)
        dlogits -= s[:, None] * load_columns(class_weight_ptr, cols, n_cols)
    dlogits *= slope(logits, CAP)

    store_tile(dlogits_ptr, dlogits_strides, words, dlogits, VECTOR, ENDS)
