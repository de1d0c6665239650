"""Cross-entropy of rows of logits against a class index per row, and its gradient.

Notation, along a row: shift is the largest logit, log_total = log(sum(exp(logits - shift))), and
lse = shift + log_total. The two are kept apart, as ``normalizer``, because their rounded sum would
lose the small one: logits near 10,000 would leave a float32 loss three correct digits.

A row has two losses, each without its factor: nll = lse - logits[target], and what label smoothing
adds, smooth = sum(class_weight * (lse - logits)). Every option of a cross-entropy is a combination
of the two per row, so the gradient is always

    dlogits = a * softmax(logits) - b * onehot(target) - s * class_weight

with three coefficients per row. One program owns BLOCK_ROWS rows; the forward kernel walks along
them, the backward kernel takes one block of columns. Vectors with one entry per row are contiguous.
Arithmetic is in the dtype of nll and of the coefficients. A target outside [0, n_cols) makes its
row's nll and gradient NaN and never reads outside the row.
"""

import triton
import triton.language as tl

from triton_kernels.rows import finite_shift, fold_block, program_rows, tile_offsets


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr,
    target_ptr,
    class_weight_ptr,
    nll_ptr,
    smooth_ptr,
    normalizer_ptr,
    n_rows,
    n_cols,
    logits_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """nll = lse - logits[target], smooth = sum(class_weight * (lse - logits)) or 0 without."""
    outer, rows = program_rows(n_rows, BLOCK_ROWS)
    in_rows = rows < n_rows
    dtype = nll_ptr.dtype.element_ty
    largest = tl.full((BLOCK_ROWS,), -float("inf"), dtype)
    total = tl.zeros((BLOCK_ROWS,), dtype)
    smooth = tl.zeros((BLOCK_ROWS,), dtype)
    weight_total = tl.zeros((1,), dtype)

    for start in range(0, n_cols, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        # columns beyond the row load as -inf and add exp(-inf) = 0 to the sum
        in_tile = in_rows[:, None] & (cols < n_cols)[None, :]
        offsets = tile_offsets(outer, rows, cols, logits_strides)
        logits = tl.load(logits_ptr + offsets, mask=in_tile, other=-float("inf")).to(dtype)
        old_shift = finite_shift(largest)
        largest, total = fold_block(logits, largest, total)
        if class_weight_ptr is not None:
            weight = tl.load(class_weight_ptr + cols, mask=cols < n_cols, other=0.0)[None, :]
            shift = finite_shift(largest)
            # a class without weight costs nothing, even at -inf: 0 * inf would be NaN
            cost = tl.where(weight != 0.0, weight * (shift[:, None] - logits), 0.0)
            smooth += (shift - old_shift) * weight_total + tl.sum(cost, axis=1)
            weight_total += tl.sum(weight, axis=1)

    shift = finite_shift(largest)
    log_total = tl.log(total)
    index = outer * n_rows + rows
    target = tl.load(target_ptr + index, mask=in_rows, other=0)
    is_class = in_rows & (target >= 0) & (target < n_cols)
    target_offsets = outer * logits_strides[0] + rows * logits_strides[1]
    target_offsets += target.to(tl.int64) * logits_strides[2]
    target_logit = tl.load(logits_ptr + target_offsets, mask=is_class, other=float("nan"))

    tl.store(nll_ptr + index, (shift - target_logit.to(dtype)) + log_total, mask=in_rows)
    tl.store(normalizer_ptr + 2 * index, shift, mask=in_rows)
    tl.store(normalizer_ptr + 2 * index + 1, log_total, mask=in_rows)
    if class_weight_ptr is not None:
        smooth += weight_total * log_total
    tl.store(smooth_ptr + index, smooth, mask=in_rows)


@triton.jit
def cross_entropy_backward_kernel(
    logits_ptr,
    target_ptr,
    class_weight_ptr,
    normalizer_ptr,
    coefficient_ptrs,
    dlogits_ptr,
    n_rows,
    n_cols,
    logits_strides,
    dlogits_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """dlogits = a * softmax(logits) - b * onehot(target) - s * class_weight."""
    outer, rows = program_rows(n_rows, BLOCK_ROWS)
    cols = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    in_rows = rows < n_rows
    in_tile = in_rows[:, None] & (cols < n_cols)[None, :]
    index = outer * n_rows + rows

    a = tl.load(coefficient_ptrs[0] + index, mask=in_rows, other=0.0)
    b = tl.load(coefficient_ptrs[1] + index, mask=in_rows, other=0.0)
    target = tl.load(target_ptr + index, mask=in_rows, other=0)
    is_class = (target >= 0) & (target < n_cols)
    a = tl.where(is_class | (b == 0.0), a, float("nan"))

    # a row that costs nothing is not read, so that not even a NaN in it has a gradient
    costs = in_rows & (a != 0.0)
    offsets = tile_offsets(outer, rows, cols, logits_strides)
    logits = tl.load(logits_ptr + offsets, mask=in_tile & costs[:, None], other=0.0).to(a.dtype)
    shift = tl.load(normalizer_ptr + 2 * index, mask=costs, other=0.0)
    log_total = tl.load(normalizer_ptr + 2 * index + 1, mask=costs, other=0.0)

    dlogits = a[:, None] * tl.exp((logits - shift[:, None]) - log_total[:, None])
    dlogits -= tl.where(cols[None, :] == target[:, None], b[:, None], 0.0)
    if class_weight_ptr is not None:
        s = tl.load(coefficient_ptrs[2] + index, mask=in_rows, other=0.0)
        weight = tl.load(class_weight_ptr + cols, mask=cols < n_cols, other=0.0)
        dlogits -= s[:, None] * weight[None, :]

    dlogits_offsets = tile_offsets(outer, rows, cols, dlogits_strides)
    tl.store(dlogits_ptr + dlogits_offsets, dlogits, mask=in_tile)
