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
of what the first has read in the L2 cache; or the packed kernel, for rows of few classes without
gaps.

What programs leave each other is in ``scratch``: COUNTS sums of weights, a loss for each program
of the second kernel, and how many of these are done, the last of which adds the losses up. So the
order of all sums is fixed.

A float reaches a kernel as float32. ``label_smoothing`` and ``z_loss`` are two each, the number and
what float32 loses of it; or None.
"""

import triton
import triton.language as tl

from triton_kernels.online import (
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
    slope,
)
from triton_kernels.rows import (
    load_columns,
    load_targets,
    load_tile,
    row_places,
    store_tile,
    tile_columns,
)

# losses of programs that the last one adds up at a time
ADDED_LOSSES = tl.constexpr(1024)
# from so many columns on it pays to wait for the target before the row is read, if it is
SKIPPED_COLS = tl.constexpr(2048)


@triton.jit
def load_row_weights(class_weight_ptr, target, counts, n_cols, dtype: tl.constexpr):
    """The weight of each row's target, 0 where the row does not count."""
    if class_weight_ptr is None:
        row_weight = tl.where(counts, 1.0, 0.0).to(dtype)
    else:
        # a target that is no class is not looked up; it makes its row NaN all the same
        target = tl.minimum(tl.maximum(target, 0), n_cols - 1)
        row_weight = tl.load(class_weight_ptr + target, mask=counts, other=0.0)
    return row_weight


@triton.jit
def done_ptr(scratch_ptr, n_programs, COUNTS: tl.constexpr):
    """Where the programs that are done are counted."""
    return (scratch_ptr + COUNTS + n_programs).to(tl.pointer_type(tl.int32), bitcast=True)


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
def load_denominator(scratch_ptr, n_counts, COUNTS: tl.constexpr, MEAN: tl.constexpr):
    """What the losses are divided by."""
    if MEAN:
        counts = tl.arange(0, COUNTS)
        denominator = tl.sum(tl.load(scratch_ptr + counts, mask=counts < n_counts, other=0.0))
    else:
        denominator = tl.full((), 1.0, scratch_ptr.dtype.element_ty)
    return denominator


@triton.jit
def load_rows(row_ptrs, index, in_rows, n_cols, ignore_index):
    """Of each row its target, whether it counts, its weight, and whether its target is a class."""
    target_ptr, class_weight_ptr, scratch_ptr = row_ptrs
    target = tl.load(target_ptr + index, mask=in_rows, other=0).to(tl.int64)
    counts = in_rows & (target != ignore_index)
    dtype: tl.constexpr = scratch_ptr.dtype.element_ty
    row_weight = load_row_weights(class_weight_ptr, target, counts, n_cols, dtype)
    return target, counts, row_weight, counts & (target >= 0) & (target < n_cols)


@triton.jit
def load_smoothing_weights(class_weight_ptr, cols, in_tile, n_cols, dtype: tl.constexpr):
    """What label smoothing weighs the classes by, 0 beside the row."""
    if class_weight_ptr is None:
        weight = tl.where(in_tile, 1.0, 0.0).to(dtype)
    else:
        weight = load_columns(class_weight_ptr, cols, n_cols)
    return weight


@triton.jit
def from_floats(number, dtype: tl.constexpr):
    """One number from the two that it is passed as."""
    return tl.full((), number[0], dtype) + tl.full((), number[1], dtype)


@triton.jit
def row_coefficients(row_weight, weight_total, lse, extras, n_cols, denominator, rows_that):
    """a, b and s of each row, 0 where it does not count; a is NaN where its target is no class."""
    label_smoothing, z_loss = extras
    counts, is_class = rows_that
    share = tl.where(counts, 1.0 / denominator, 0.0)
    # not even the weights' sum of 0 makes a gradient where a row does not count
    b = tl.where(counts, share * row_weight, 0.0)
    s = tl.zeros_like(b)
    if label_smoothing is not None:
        rest = from_floats(label_smoothing, b.dtype)
        b *= 1.0 - rest
        s = share * (rest / n_cols)
    a = tl.where(is_class | ~counts, b, float("nan")) + s * weight_total
    if z_loss is not None:
        z = from_floats(z_loss, b.dtype) * share
        a += tl.where(counts, 2.0 * z * lse, 0.0)
    return a, b, s


@triton.jit
def dlogits_of(x, p, a, s, class_weight, CAP: tl.constexpr):
    """The gradient of a tile but for the target's share of it: (a * p - s * class_weight) * slope.

    x are the logits before the cap, and all else is broadcast.
    """
    dlogits = a * p
    if class_weight is not None:
        dlogits -= s * class_weight
    return dlogits * slope(x, CAP)


@triton.jit
def dlogits_of_target(target_logit, p, a, b, s, row_weight, extras, CAP: tl.constexpr):
    """The gradient of each row's target."""
    class_weight = None if extras[0] is None else row_weight
    dlogits = dlogits_of(target_logit, p, a, s, class_weight, CAP)
    return dlogits - b * slope(target_logit, CAP)


@triton.jit
def store_targets(ptr, strides, outer, rows, target, is_class, value):
    """Write one element of each row over what a tile has left there."""
    offsets = outer * strides[0] + rows * strides[1] + target * strides[2]
    # which another thread may have written
    tl.debug_barrier()
    tl.store(ptr + offsets, value, mask=is_class)


@triton.jit
def store_loss(
    loss_ptr,
    scratch_ptr,
    nll,
    smooth,
    lse,
    row_weight,
    counts,
    extras,
    n_cols,
    denominator,
    COUNTS: tl.constexpr,
):
    """Leave the losses of this program's rows; the last program stores the loss."""
    label_smoothing, z_loss = extras
    losses = row_weight * nll
    if label_smoothing is not None:
        rest = from_floats(label_smoothing, nll.dtype)
        losses = (1.0 - rest) * losses + rest / n_cols * smooth
    if z_loss is not None:
        losses += from_floats(z_loss, nll.dtype) * lse * lse
    program = tl.program_id(0)
    n_programs = tl.num_programs(0)
    losses_ptr = scratch_ptr + COUNTS
    tl.store(losses_ptr + program, tl.sum(tl.where(counts, losses, 0.0)))
    # it is there before the program is counted
    tl.debug_barrier()
    if tl.atomic_add(done_ptr(scratch_ptr, n_programs, COUNTS), 1) == n_programs - 1:
        tl.debug_barrier()
        total = tl.zeros((ADDED_LOSSES,), nll.dtype)
        for start in range(0, n_programs, ADDED_LOSSES):
            programs = start + tl.arange(0, ADDED_LOSSES)
            # from the L2 cache, where other multiprocessors have left them
            total += tl.load(
                losses_ptr + programs,
                mask=programs < n_programs,
                other=0.0,
                cache_modifier=".cg",
            )
        tl.store(loss_ptr, tl.sum(total) / denominator)


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
