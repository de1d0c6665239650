"""Cross-entropy of all rows as one number, and its gradient in the same pass.

The notation and contract are those of :mod:`triton_kernels.cross_entropy`. Let w be the weight of a
row's target or 1, and 0 for a row whose target is ``ignore_index``. The loss is the sum over rows
of

    (1 - label_smoothing) * w * nll + label_smoothing / n_cols * smooth + z_loss * lse**2

over the denominator, with MEAN the sum of w. The gradient of a row is

    dlogits = a * p - b * onehot(target) - s * class_weight
    b = (1 - label_smoothing) * w / denominator, s = label_smoothing / n_cols / denominator
    a = b + s * sum(class_weight) + 2 * z_loss / denominator * lse

Two kernels run one after the other: the first adds the weights up, so that the second can write the
gradient as it is meant. The second is the plain kernel, which holds whole rows in one block and
reads them once; the online kernel, which walks longer rows twice, where the second walk finds some
of what the first has read in the L2 cache; or, for rows of few classes without gaps, the kernel of
:mod:`triton_kernels.packed_cross_entropy_loss`.

What programs leave each other is in ``scratch``: COUNTS sums of weights, a loss for each program
of the second kernel, and how many of these are done, the last of which adds the losses up. So the
order of all sums is fixed.

A float reaches a kernel as float32. ``label_smoothing`` and ``z_loss`` are two each, the number and
what float32 loses of it; or None.
"""

import triton
import triton.language as tl

from .online import (
    capped,
    exp,
    finite_shift,
    fold_cost,
    fold_total,
    in_lanes,
    load_logits,
    log,
    merge_cost,
    merge_lanes,
)
from .row_losses import (
    dlogits_of,
    dlogits_of_target,
    done_ptr,
    load_denominator,
    load_row_weights,
    load_rows,
    load_smoothing_weights,
    row_coefficients,
    store_loss,
    store_targets,
)
from .rows import load_targets, load_tile, row_places, store_tile, tile_columns

# from so many columns on it pays to wait for the target before the row is read, if it is
SKIPPED_COLS = tl.constexpr(2048)


@triton.jit
def cross_entropy_count_kernel(
    target_ptr,
    class_weight_ptr,
    scratch_ptr,
    n_rows,
    n_cols,
    n_programs,
    ignore_index,
    BLOCK_ROWS: tl.constexpr,
    COUNTS: tl.constexpr,
):
    """The sum of the weights of each program's rows; and none of ``n_programs`` that is done."""
    dtype: tl.constexpr = scratch_ptr.dtype.element_ty
    # rows may pass 2**31
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), dtype)
    for start in range(program * BLOCK_ROWS, n_rows, COUNTS * BLOCK_ROWS):
        rows = tl.arange(0, BLOCK_ROWS)
        in_rows = rows < tl.minimum(n_rows - start, BLOCK_ROWS).to(tl.int32)
        target = tl.load(target_ptr + start + rows, mask=in_rows, other=0).to(tl.int64)
        counts = in_rows & (target != ignore_index)
        total += tl.sum(load_row_weights(class_weight_ptr, target, counts, n_cols, dtype))
    tl.store(scratch_ptr + program, total)
    if program == 0:
        tl.store(done_ptr(scratch_ptr, n_programs, COUNTS), 0)


@triton.jit
def cross_entropy_loss_kernel(
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
    """The loss and, where there is a dlogits, its gradient."""
    logits_strides, dlogits_strides = strides
    dtype: tl.constexpr = scratch_ptr.dtype.element_ty
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    cols, in_tile, words = tile_columns(0, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
    row_ptrs = (target_ptr, class_weight_ptr, scratch_ptr)
    target, counts, row_weight, is_class = load_rows(
        row_ptrs, outer * n_rows + rows, in_rows, n_cols, ignore_index
    )
    # many rows to a program may share words, which a mask of rows would divide
    skips: tl.constexpr = BLOCK_ROWS < 32 and BLOCK_COLS >= SKIPPED_COLS
    wanted_rows = counts if skips else None
    x = load_logits(
        logits_ptr, logits_strides, words, True, dtype, VECTOR, ENDS, CAP, None, wanted_rows
    )
    if not skips:
        # whatever NaN it holds
        x = tl.where(counts[:, None], x, -float("inf"))
    # read once more instead of searched
    target_logit = load_targets(logits_ptr, logits_strides, outer, rows, target, is_class).to(dtype)
    target_x = capped(target_logit, CAP)
    denominator = load_denominator(scratch_ptr, n_counts, COUNTS, MEAN)

    shift = finite_shift(tl.max(x, axis=1))
    exp_x = exp(x - shift[:, None])
    total = tl.sum(exp_x, axis=1)
    log_total = log(total)
    nll = (shift - target_x) + log_total
    lse = shift + log_total
    smooth = tl.zeros_like(nll)
    weight_total = tl.zeros_like(nll)
    weight = None
    if extras[0] is not None:
        weight = load_smoothing_weights(class_weight_ptr, cols, in_tile, n_cols, dtype)
        # without weight no cost, even at -inf: 0 * inf would be NaN
        cost = tl.sum(tl.where(weight != 0.0, weight * (shift[:, None] - x), 0.0), axis=1)
        weight_total = tl.sum(weight, axis=1)
        smooth = cost + weight_total * log_total

    if dlogits_ptr is not None:
        a, b, s = row_coefficients(
            row_weight, weight_total, lse, extras, n_cols, denominator, (counts, is_class)
        )
        a = tl.where(counts, a / total, 0.0)
        if CAP[1] is not None:
            # once more as they were before the cap: to keep them would take too many registers
            x = load_tile(logits_ptr, logits_strides, words, VECTOR, None, wanted_rows).to(dtype)
            x = tl.where(counts[:, None], x, 0.0)
        dlogits = dlogits_of(x, exp_x, a[:, None], s[:, None], weight, CAP)
        target_dlogits = dlogits_of_target(
            target_logit, exp(target_x - shift), a, b, s, row_weight, extras, CAP
        )
        # in place no thread may write before another has read
        tl.debug_barrier()
        store_tile(dlogits_ptr, dlogits_strides, words, dlogits, VECTOR, ENDS)
        store_targets(dlogits_ptr, dlogits_strides, outer, rows, target, is_class, target_dlogits)
    store_loss(
        loss_ptr, scratch_ptr, nll, smooth, lse, row_weight, counts, extras, n_cols, denominator,
        COUNTS,
    )  # fmt: skip


@triton.jit
def cross_entropy_loss_online_kernel(
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
    """The loss and its gradient as of the plain kernel, for rows longer than a block."""
    logits_strides, dlogits_strides = strides
    dtype: tl.constexpr = scratch_ptr.dtype.element_ty
    places = row_places(tl.program_id(0), n_rows, BLOCK_ROWS, logits_strides, VECTOR)
    outer, rows, _, in_rows = places
    row_ptrs = (target_ptr, class_weight_ptr, scratch_ptr)
    target, counts, row_weight, is_class = load_rows(
        row_ptrs, outer * n_rows + rows, in_rows, n_cols, ignore_index
    )
    wanted_rows = counts if BLOCK_ROWS < 32 else None
    target_logit = load_targets(logits_ptr, logits_strides, outer, rows, target, is_class).to(dtype)
    target_x = capped(target_logit, CAP)
    denominator = load_denominator(scratch_ptr, n_counts, COUNTS, MEAN)

    largest = tl.full((BLOCK_ROWS, LANES), -float("inf"), dtype)
    total = tl.zeros((BLOCK_ROWS, LANES), dtype)
    smooth = tl.zeros((BLOCK_ROWS, LANES), dtype)
    weight_total = tl.zeros((BLOCK_ROWS, LANES), dtype)
    # only for a gradient the row is read again
    EVICTION: tl.constexpr = None if dlogits_ptr is None else "evict_last"
    for start in range(0, n_cols + VECTOR - 1, BLOCK_COLS):
        cols, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
        is_edge = (start == 0) | (start + BLOCK_COLS > n_cols)
        x = load_logits(
            logits_ptr, logits_strides, words, is_edge, dtype, VECTOR, ENDS, CAP, EVICTION,
            wanted_rows,
        )  # fmt: skip
        x = in_lanes(x, LANES)
        old_largest = largest
        largest, total = fold_total(x, largest, total)
        if extras[0] is not None:
            weight = load_smoothing_weights(class_weight_ptr, cols, in_tile, n_cols, dtype)
            smooth, weight_total = fold_cost(
                in_lanes(weight, LANES), x, old_largest, largest, smooth, weight_total
            )

    _row_largest, shift, total, log_total = merge_lanes(largest, total)
    smooth, weight_total = merge_cost(largest, smooth, weight_total, shift)
    nll = (shift - target_x) + log_total
    lse = shift + log_total
    smooth += weight_total * log_total

    if dlogits_ptr is not None:
        a, b, s = row_coefficients(
            row_weight, weight_total, lse, extras, n_cols, denominator, (counts, is_class)
        )
        a = tl.where(counts, a / total, 0.0)
        target_dlogits = dlogits_of_target(
            target_logit, exp(target_x - shift), a, b, s, row_weight, extras, CAP
        )
        # in place no thread may write before another has read
        tl.debug_barrier()
        # the other way round: what was read last is most likely to be in the cache
        n_blocks = tl.cdiv(n_cols + VECTOR - 1, BLOCK_COLS)
        for block in range(n_blocks):
            start = (n_blocks - 1 - block) * BLOCK_COLS
            cols, in_tile, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
            x = load_tile(logits_ptr, logits_strides, words, VECTOR, "evict_first", wanted_rows)
            x = x.to(dtype)
            if wanted_rows is None:
                x = tl.where(counts[:, None], x, 0.0)
            weight = None
            if extras[0] is not None:
                weight = load_smoothing_weights(class_weight_ptr, cols, in_tile, n_cols, dtype)
            exp_x = exp(capped(x, CAP) - tl.where(counts, shift, 0.0)[:, None])
            dlogits = dlogits_of(x, exp_x, a[:, None], s[:, None], weight, CAP)
            store_tile(dlogits_ptr, dlogits_strides, words, dlogits, VECTOR, ENDS, "evict_first")
        store_targets(dlogits_ptr, dlogits_strides, outer, rows, target, is_class, target_dlogits)
    store_loss(
        loss_ptr, scratch_ptr, nll, smooth, lse, row_weight, counts, extras, n_cols, denominator,
        COUNTS,
    )  # fmt: skip
