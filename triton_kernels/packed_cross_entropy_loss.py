"""Cross-entropy of all rows as one number, and its gradient: for packed rows of few classes.

The notation and contract are those of :mod:`triton_kernels.cross_entropy_loss`, whose count kernel
runs first.
"""

import triton
import triton.language as tl

from .online import capped, exp, finite_shift, log, slope
from .row_losses import (
    dlogits_of,
    load_denominator,
    load_rows,
    load_smoothing_weights,
    row_coefficients,
    store_loss,
)


@triton.jit
def cross_entropy_loss_packed_kernel(
    logits_ptr,
    target_ptr,
    class_weight_ptr,
    loss_ptr,
    scratch_ptr,
    dlogits_ptr,
    n_rows,
    n_cols,
    n_counts,
    ignore_index,
    extras,
    strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    CAP: tl.constexpr,
    COUNTS: tl.constexpr,
    MEAN: tl.constexpr,
):
    """The loss and its gradient as of the plain kernel, for packed rows of few classes.

    They are moved as what they are in memory, one run of elements, and computed on in a tile whose
    last axis is the rows: a thread holds a row, and needs no other for its sums.
    """
    dtype: tl.constexpr = scratch_ptr.dtype.element_ty
    ELEMENTS: tl.constexpr = BLOCK_ROWS * BLOCK_COLS
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    in_rows = first + row < n_rows
    row_ptrs = (target_ptr, class_weight_ptr, scratch_ptr)
    target, counts, row_weight, is_class = load_rows(
        row_ptrs, first + row, in_rows, n_cols, ignore_index
    )
    denominator = load_denominator(scratch_ptr, n_counts, COUNTS, MEAN)

    element = tl.arange(0, ELEMENTS)
    n_elements = tl.minimum(n_rows - first, BLOCK_ROWS).to(tl.int32) * n_cols
    # a bound that is a multiple of a word tells the compiler that the mask divides none
    touched = element < tl.cdiv(n_elements, VECTOR) * VECTOR
    run = tl.load(logits_ptr + first * n_cols + element, mask=touched, other=0.0)

    cols = tl.arange(0, BLOCK_COLS)[:, None]
    places = row[None, :] * n_cols + tl.minimum(cols, n_cols - 1)
    logits = tl.gather(run, tl.reshape(places, (ELEMENTS,)), 0)
    logits = tl.reshape(logits, (BLOCK_COLS, BLOCK_ROWS)).to(dtype)
    logits = tl.where(counts[None, :], logits, 0.0)
    in_row = cols < n_cols
    x = tl.where(in_row, capped(logits, CAP), -float("inf"))
    is_target = is_class[None, :] & (cols == target.to(tl.int32)[None, :])
    target_x = tl.sum(tl.where(is_target, x, 0.0), axis=0)
    shift = finite_shift(tl.max(x, axis=0))
    exp_x = exp(x - shift[None, :])
    total = tl.sum(exp_x, axis=0)
    log_total = log(total)
    nll = tl.where(is_class, (shift - target_x) + log_total, float("nan"))
    lse = shift + log_total
    smooth = tl.zeros_like(nll)
    weight_total = tl.zeros_like(nll)
    weight = None
    if extras[0] is not None:
        weight = load_smoothing_weights(class_weight_ptr, cols, in_row, n_cols, dtype)
        cost = tl.sum(tl.where(weight != 0.0, weight * (shift[None, :] - x), 0.0), axis=0)
        weight_total = tl.zeros_like(nll) + tl.sum(weight, axis=0)
        smooth = cost + weight_total * log_total

    if dlogits_ptr is not None:
        a, b, s = row_coefficients(
            row_weight, weight_total, lse, extras, n_cols, denominator, (counts, is_class)
        )
        a = tl.where(counts, a / total, 0.0)
        dlogits = dlogits_of(logits, exp_x, a[None, :], s[None, :], weight, CAP)
        dlogits -= tl.where(is_target, b[None, :] * slope(logits, CAP), 0.0)
        # the row of an element, without a division: exact below 2**20 / n_cols elements
        row_of = element * tl.cdiv(2**20, n_cols) >> 20
        places = (element - row_of * n_cols) * BLOCK_ROWS + row_of
        dlogits = tl.reshape(dlogits.to(dlogits_ptr.dtype.element_ty), (ELEMENTS,))
        run = tl.gather(dlogits, places, 0)
        ptrs = dlogits_ptr + first * n_cols + element
        n_whole = n_elements // VECTOR * VECTOR
        tl.store(ptrs, run, mask=element < n_whole)
        if n_whole < n_elements:
            tl.store(ptrs, run, mask=(element >= n_whole) & (element < n_elements))
    store_loss(
        loss_ptr, scratch_ptr, nll, smooth, lse, row_weight, counts, extras, n_cols, denominator,
        COUNTS,
    )  # fmt: skip
