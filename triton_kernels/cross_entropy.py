"""Cross-entropy of rows of logits, and its gradient, with coefficients per row.

Notation, along a row: row_max is the largest logit, log_sum_exp = log(sum(exp(logits - row_max))),
and lse = row_max + log_sum_exp. The kernels store row_max and log_sum_exp separately, as
``softmax_stats``: their rounded sum loses the smaller one, and with logits near 10,000 a float32
loss would keep three correct digits. q is the one-hot of the row's target, or its probabilities; w
are the class weights or 1, and 1 for class indices.

A row has two losses, nll = sum(w * q * (lse - logits)) and, for label smoothing, smooth =
sum(class_weight * (lse - logits)), and two statistics, lse and entropy. A class of weight or
probability 0 has loss 0, whatever its logit. The options of a cross-entropy are functions of these
four numbers, so with p = softmax(logits) and coefficients per row the gradient always has the form

    dlogits = ((a - e * log(p)) * p - b * w * q - s * class_weight) * softcap_grad(logits)

where a contains -e * entropy. The softcap acts on the logits as they are loaded.

One program owns TILE.rows rows; the forward kernel reads them block by block, the backward kernel
takes one block of columns. Vectors with one entry per row are contiguous; a None pointer disables
its input or output at compile time. Arithmetic is in the dtype of nll and of the coefficients. A
target outside [0, n_cols) makes its row's nll and gradient NaN and is never used as an address.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import exp, softcap, softcap_grad
from .loss_epilogue import Coefficients
from .online_softmax import (
    as_partials,
    combine_entropy,
    combine_prediction,
    combine_row_sums,
    cost_to_lse,
    empty_row_sums,
    load_logits,
    update_entropy,
    update_prediction,
    update_row_sums,
    zero_partials,
)
from .targets import (
    load_class_weights,
    load_target_logits,
    load_targets,
    one_hot,
    subtract_class_gradient,
)
from .tiles import MIN_SHARED_ROWS, column_tile, load_tile, row_block, store_tile


class RowOutputPointers(NamedTuple):
    """Outputs of the forward kernel with one entry per row."""

    nll: Any
    smooth: Any
    target_weight: Any
    lse: Any
    entropy: Any
    prediction: Any
    softmax_stats: Any


class RowInputPointers(NamedTuple):
    """Inputs of the backward kernel with one entry per row."""

    softmax_stats: Any
    a: Any
    b: Any
    s: Any
    e: Any


@triton.jit
def cross_entropy_forward_kernel(
    logits,
    target,
    class_weight_ptr,
    row_outputs,
    n_rows,
    n_cols,
    TILE: tl.constexpr,
    N_PARTIALS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """nll = sum(w * q * (lse - logits)), smooth = sum(class_weight * (lse - logits)), lse, ..."""
    dtype: tl.constexpr = row_outputs.nll.dtype.element_ty
    HAS_SMOOTHING: tl.constexpr = class_weight_ptr is not None
    HAS_ENTROPY: tl.constexpr = row_outputs.entropy is not None
    rows = row_block(tl.program_id(0), n_rows, logits, TILE)
    sums = empty_row_sums(TILE.rows, N_PARTIALS, dtype)
    product = zero_partials(TILE.rows, N_PARTIALS, dtype)
    prediction = zero_partials(TILE.rows, N_PARTIALS, tl.int32)

    for start in range(0, n_cols + TILE.vec_size - 1, TILE.cols):
        tile = column_tile(start, rows, n_cols, TILE)
        is_edge = (start == 0) | (start + TILE.cols > n_cols)
        x = load_logits(logits, tile, is_edge, dtype, TILE, SOFTCAP)
        x = as_partials(x, N_PARTIALS)
        weights = load_class_weights(target, class_weight_ptr, tile, n_cols, TILE, dtype)
        old = sums.softmax
        sums = update_row_sums(sums, x, target, weights, HAS_SMOOTHING)
        if HAS_ENTROPY:
            product = update_entropy(product, x, old, sums.softmax)
            cols = as_partials(tile.cols, N_PARTIALS)
            prediction = update_prediction(prediction, x, cols, old.row_max)
    targets = load_targets(target, None, rows, n_cols, None, dtype)
    target_logits = load_target_logits(logits, target, rows, targets, dtype)
    stats = combine_row_sums(sums, target, targets, softcap(target_logits, SOFTCAP))

    index = rows.outer * n_rows + rows.index
    softmax = stats.softmax
    nll = cost_to_lse(stats.target, softmax)
    tl.store(row_outputs.nll + index, nll, mask=rows.exist)
    tl.store(row_outputs.softmax_stats + 2 * index, softmax.row_max, mask=rows.exist)
    tl.store(row_outputs.softmax_stats + 2 * index + 1, softmax.log_sum_exp, mask=rows.exist)
    tl.store(row_outputs.lse + index, softmax.row_max + softmax.log_sum_exp, mask=rows.exist)
    if row_outputs.target_weight is not None:
        tl.store(row_outputs.target_weight + index, stats.target.weight, mask=rows.exist)
    if HAS_SMOOTHING:
        smooth = cost_to_lse(stats.smooth, softmax)
        tl.store(row_outputs.smooth + index, smooth, mask=rows.exist)
    if HAS_ENTROPY:
        entropy = combine_entropy(product, sums.softmax, softmax)
        tl.store(row_outputs.entropy + index, entropy, mask=rows.exist)
        prediction = combine_prediction(prediction, sums.softmax)
        tl.store(row_outputs.prediction + index, prediction, mask=rows.exist)


@triton.jit
def cross_entropy_backward_kernel(
    logits,
    target,
    class_weight_ptr,
    row_inputs,
    dlogits,
    n_rows,
    n_cols,
    TILE: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """dlogits = ((a - e * log(p)) * p - b * w * q - s * class_weight) * softcap_grad(logits)."""
    HAS_SMOOTHING: tl.constexpr = row_inputs.s is not None
    dtype: tl.constexpr = row_inputs.a.dtype.element_ty
    rows = row_block(tl.program_id(0), n_rows, logits, TILE)
    index = rows.outer * n_rows + rows.index
    a = tl.load(row_inputs.a + index, mask=rows.exist, other=0.0)
    b = tl.load(row_inputs.b + index, mask=rows.exist, other=0.0)
    targets = load_targets(target, None, rows, n_cols, None, dtype)
    a = tl.where(targets.is_class | (b == 0.0), a, float("nan"))
    # a row without a gradient through p is not read, so a NaN in it has gradient 0
    is_needed = rows.exist & (a != 0.0)
    if row_inputs.e is not None:
        is_needed = rows.exist
    needed_rows = is_needed if TILE.rows < MIN_SHARED_ROWS else None
    tile = column_tile(tl.program_id(1) * TILE.cols, rows, n_cols, TILE)
    x = load_tile(logits, tile, TILE, needed_rows=needed_rows)
    x = tl.where(is_needed[:, None], x.to(dtype), 0.0)

    log_p = load_log_probabilities(row_inputs.softmax_stats, index, softcap(x, SOFTCAP), is_needed)
    p = exp(log_p)
    weight_of_p = a[:, None]
    if row_inputs.e is not None:
        e = tl.load(row_inputs.e + index, mask=rows.exist, other=0.0)
        # p = 0 counts as 0, whatever its logarithm
        weight_of_p = weight_of_p - tl.where(p > 0.0, e[:, None] * log_p, 0.0)
    weights = load_class_weights(target, class_weight_ptr, tile, n_cols, TILE, dtype)
    s = b
    if HAS_SMOOTHING:
        s = tl.load(row_inputs.s + index, mask=rows.exist, other=0.0)
    gradient = weight_of_p * p
    if not target.ptr.dtype.element_ty.is_floating():
        gradient -= one_hot(targets.index, tile, b)
    coefficients = Coefficients(a, b, s)
    gradient = subtract_class_gradient(gradient, target, weights, coefficients, HAS_SMOOTHING)
    store_tile(dlogits, tile, gradient * softcap_grad(x, SOFTCAP), TILE)


@triton.jit
def load_log_probabilities(softmax_stats_ptr, index, x, is_needed):
    """log(p) of a tile, computed from the softmax_stats of its rows."""
    row_max = tl.load(softmax_stats_ptr + 2 * index, mask=is_needed, other=0.0)
    log_sum_exp = tl.load(softmax_stats_ptr + 2 * index + 1, mask=is_needed, other=0.0)
    return (x - row_max[:, None]) - log_sum_exp[:, None]
