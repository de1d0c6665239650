"""Device functions of the loss epilogue: row statistics to loss and gradient coefficients.

The notation is that of ``cross_entropy_loss``.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .online_softmax import cost_to_lse
from .targets import Targets
from .tiling import MAX_WEIGHT_PARTIALS

# partial losses per step of the last program
LOSS_BLOCK = tl.constexpr(1024)
# a block that holds all partial sums of weights
WEIGHT_BLOCK = tl.constexpr(MAX_WEIGHT_PARTIALS)


class FloatPair(NamedTuple):
    """A float64 as the sum of two float32, because a kernel's float arguments are float32."""

    high: float
    low: float


class LossOptions(NamedTuple):
    """Options of a loss; None disables label smoothing or z_loss at compile time."""

    ignore_index: int
    label_smoothing: FloatPair | None
    z_loss: FloatPair | None


class IncomingGradient(NamedTuple):
    """The gradient of the loss, ``row_stride`` numbers apart for each row, 0 for one number."""

    ptr: Any
    row_stride: int


class Denominator(NamedTuple):
    """The sum of ``n`` partial sums; ``n`` itself where ``partials_ptr`` is None.

    Where ``n`` is None, there is one number at ``partials_ptr``. Where both are None, it is the sum
    of the weights of the program's rows. The gradient has the factor ``dloss`` where that is known.
    """

    partials_ptr: Any
    n: int | None
    dloss: IncomingGradient | None


class LossOutput(NamedTuple):
    """The loss, a partial loss of each program, and how many programs have stored theirs.

    A single program has neither partial losses nor a counter. ``rows_ptr`` is a loss per row, and
    the others are None, or it is None.
    """

    ptr: Any
    partials_ptr: Any
    counter_ptr: Any
    rows_ptr: Any


class Coefficients(NamedTuple):
    """Coefficients of each row's gradient."""

    a: Any
    b: Any
    s: Any


@triton.jit
def load_dloss(dloss, targets, rows, n_rows, dtype: tl.constexpr):
    """The gradient of each row's loss, and the targets without rows of which it is 0."""
    value = tl.full((), 1.0, dtype)
    if dloss is not None:
        index = rows.outer * n_rows + rows.index
        ptrs = dloss.ptr + index * dloss.row_stride
        value = tl.load(ptrs, mask=rows.exist, other=0.0).to(dtype)
        is_counted = targets.is_counted & (value != 0.0)
        targets = Targets(targets.index, is_counted, targets.is_class & is_counted, targets.weight)
    return value, targets


@triton.jit
def load_denominator(denominator, targets, dloss, dtype: tl.constexpr):
    """The number that divides the sum of the losses, and the factor of the gradient of each."""
    if denominator.partials_ptr is None:
        if denominator.n is None:
            value = tl.sum(targets.weight)
        else:
            value = tl.full((), denominator.n, dtype)
    elif denominator.n is None:
        value = tl.load(denominator.partials_ptr).to(dtype)
    else:
        index = tl.arange(0, WEIGHT_BLOCK)
        mask = index < denominator.n
        value = tl.sum(tl.load(denominator.partials_ptr + index, mask=mask, other=0).to(dtype))
    return value, dloss / value


@triton.jit
def from_pair(pair, dtype: tl.constexpr):
    """The number that a FloatPair holds."""
    return tl.full((), pair.high, dtype) + tl.full((), pair.low, dtype)


@triton.jit
def apply_options(stats, targets, gradient_scale, loss_options, n_cols):
    """Each row's loss before the division, and its coefficients; 0 for rows that are not counted.

    The coefficient ``a`` is already divided by sum_exp, because it multiplies exp(x - row_max).
    """
    is_counted = targets.is_counted
    # rows that are not counted have gradient 0, even if the denominator is 0
    scale = tl.where(is_counted, gradient_scale, 0.0)
    losses = cost_to_lse(stats.target, stats.softmax)
    b = scale
    s = tl.zeros_like(scale)
    a = b * stats.target.weight
    if loss_options.label_smoothing is not None:
        smoothing = from_pair(loss_options.label_smoothing, scale.dtype)
        smooth = cost_to_lse(stats.smooth, stats.softmax)
        losses = (1.0 - smoothing) * losses + smoothing / n_cols * smooth
        b = scale * (1.0 - smoothing)
        s = scale * (smoothing / n_cols)
        a = b * stats.target.weight + s * stats.smooth.weight
    if loss_options.z_loss is not None:
        z = from_pair(loss_options.z_loss, scale.dtype)
        lse = stats.softmax.row_max + stats.softmax.log_sum_exp
        losses += z * lse * lse
        a += 2.0 * (z * scale) * lse
    a = tl.where(targets.is_class, a / stats.softmax.sum_exp, float("nan"))
    return tl.where(is_counted, losses, 0.0), Coefficients(tl.where(is_counted, a, 0.0), b, s)


@triton.jit
def reduce_loss(losses, denominator, loss, rows, n_rows):
    """Add the program's losses to the loss: sum(losses of all rows) / denominator, or each row's.

    The program that finishes last adds the partial losses in the order of the programs, so the
    result does not depend on the order in which they finish.
    """
    if loss.rows_ptr is not None:
        index = rows.outer * n_rows + rows.index
        tl.store(loss.rows_ptr + index, losses, mask=rows.exist)
    elif loss.partials_ptr is None:
        tl.store(loss.ptr, tl.sum(losses) / denominator)
    else:
        n_programs = tl.num_programs(0)
        tl.store(loss.partials_ptr + tl.program_id(0), tl.sum(losses))
        # publish the partial loss before incrementing the counter
        tl.debug_barrier()
        n_before = tl.atomic_add(loss.counter_ptr, 1, sem="acq_rel", scope="gpu")
        if n_before == n_programs - 1:
            # all threads read after the thread that acquired the counter
            tl.debug_barrier()
            total = tl.zeros((LOSS_BLOCK,), loss.partials_ptr.dtype.element_ty)
            for start in range(0, n_programs, LOSS_BLOCK):
                index = start + tl.arange(0, LOSS_BLOCK)
                # past the L1 cache, which does not see the stores of other multiprocessors
                partials_ptr = loss.partials_ptr + index
                mask = index < n_programs
                total += tl.load(partials_ptr, mask=mask, other=0.0, cache_modifier=".cg")
            tl.store(loss.ptr, tl.sum(total) / denominator)
