"""Device functions of the loss of all rows: what a row counts, its coefficients, and the sum.

The notation is that of :mod:`triton_kernels.cross_entropy_loss`, and so is ``scratch``.
"""

import triton
import triton.language as tl

from .online import slope
from .rows import load_columns

# losses of programs that the last one adds up at a time
ADDED_LOSSES = tl.constexpr(1024)


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
