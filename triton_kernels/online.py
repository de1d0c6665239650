"""Device functions of the walk along rows of logits: sums over exponentials, kept in range.

A walk meets the logits of a row block by block and keeps its largest logit so far and sums relative
to it. When a larger logit comes, the sums are moved to it: the online softmax of Milakov and
Gimelshein, "Online softmax_stats calculation for softmax" (2018).

To fold a block in, threads need not wait for each other: a block is three axes here, (row, lane,
element), and each lane, elements that one thread holds, keeps a maximum and sums of its own. They
are merged when the walk is over.
"""

import triton
import triton.language as tl

from .rows import load_tile


@triton.jit
def load_logits(
    ptr,
    strides,
    words,
    is_edge,
    dtype: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    CAP: tl.constexpr,
    EVICTION: tl.constexpr = None,
    wanted_rows=None,
):
    """Capped logits in ``dtype``, -inf beside a row: it adds exp(-inf) = 0 to a sum.

    A tile in the midst of a row, which ``is_edge`` tells, is spared the comparisons.
    """
    x = load_tile(ptr, strides, words, VECTOR, EVICTION, wanted_rows, OTHER=-float("inf"))
    x = capped(x.to(dtype), CAP)
    # words hold what is beside a row, and a cap or a scale of 0 or below changes -inf
    if ENDS or CAP[0] <= 0.0 or CAP[1] is not None:  # noqa: SIM102, one is no constant
        if is_edge:
            x = tl.where(words[3], x, -float("inf"))
    return x


@triton.jit
def in_lanes(x, LANES: tl.constexpr):
    """A block (rows, columns) as (rows, lanes, elements)."""
    return tl.reshape(x, (x.shape[0], LANES, x.shape[1] // LANES))


@triton.jit
def finite_shift(largest):
    """What to subtract before exp: the maximum, or 0 while all is -inf, as -inf - -inf is NaN."""
    return tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def fold_total(x, largest, total):
    """Take a block into each lane's maximum and sum(exp(x - maximum))."""
    new_largest = tl.maximum(largest, tl.max(x, axis=2))
    shift = finite_shift(new_largest)
    total = total * exp(largest - shift) + tl.sum(exp(x - shift[:, :, None]), axis=2)
    return new_largest, total


@triton.jit
def fold_cost(weight, x, old_largest, largest, cost, weight_total):
    """Take a block into sum(weight * (maximum - x)) and sum(weight)."""
    shift = finite_shift(largest)
    # without weight no cost, even at -inf: 0 * inf would be NaN
    block_cost = tl.where(weight != 0.0, weight * (shift[:, :, None] - x), 0.0)
    cost += (shift - finite_shift(old_largest)) * weight_total + tl.sum(block_cost, axis=2)
    return cost, weight_total + tl.sum(weight, axis=2)


@triton.jit
def fold_product(x, old_largest, largest, old_total, product):
    """Take a block into sum(exp(x - maximum) * (x - maximum)), of which the entropy is made."""
    shift = finite_shift(largest)
    exp_x = exp(x - shift[:, :, None])
    block_product = tl.where(exp_x > 0.0, exp_x * (x - shift[:, :, None]), 0.0)
    return moved_product(old_largest, shift, old_total, product) + tl.sum(block_product, axis=2)


@triton.jit
def moved_product(largest, shift, total, product):
    """sum(exp(x - shift) * (x - shift)) from the same for the maximum."""
    return exp(largest - shift) * (product + (finite_shift(largest) - shift) * total)


@triton.jit
def fold_prediction(x, cols, old_largest, prediction):
    """Take a block into the column of each lane's first maximum."""
    block_largest, element = tl.max(x, axis=2, return_indices=True)
    return tl.where(block_largest > old_largest, tl.min(cols, axis=2) + element, prediction)


@triton.jit
def merge_lanes(largest, total):
    """Of each row its maximum, shift, sum(exp(x - shift)), and the logarithm of that."""
    row_largest = tl.max(largest, axis=1)
    shift = finite_shift(row_largest)
    row_total = tl.sum(total * exp(largest - shift[:, None]), axis=1)
    return row_largest, shift, row_total, log(row_total)


@triton.jit
def merge_cost(largest, cost, weight_total, shift):
    """sum(weight * (shift - x)) and sum(weight) of each row."""
    cost += (shift[:, None] - finite_shift(largest)) * weight_total
    return tl.sum(cost, axis=1), tl.sum(weight_total, axis=1)


@triton.jit
def merge_product(largest, total, product, shift):
    """sum(exp(x - shift) * (x - shift)) of each row."""
    return tl.sum(moved_product(largest, shift[:, None], total, product), axis=1)


@triton.jit
def merge_prediction(largest, prediction, row_largest):
    """The column of each row's first maximum."""
    is_largest = largest == row_largest[:, None]
    return tl.min(tl.where(is_largest, prediction, 2**31 - 1), axis=1)


@triton.jit
def capped(x, CAP: tl.constexpr):
    """softcap * tanh(scale * x / softcap), or scale * x without, for CAP = (scale, softcap)."""
    x = x * CAP[0]
    if CAP[1] is not None:
        x = CAP[1] * tanh(x / CAP[1])
    return x


@triton.jit
def slope(x, CAP: tl.constexpr):
    """Derivative of capped(x)."""
    slope = tl.full((), CAP[0], x.dtype)
    if CAP[1] is not None:
        # 1 - tanh**2 without the difference, which cancels near 1
        decay = exp(-2.0 * tl.abs(x * CAP[0] / CAP[1]))
        slope = slope * (4.0 * decay / ((1.0 + decay) * (1.0 + decay)))
    return slope


@triton.jit
def log_probabilities(logits, softmax_stats_ptr, index, in_rows):
    """log(softmax(logits)) of rows whose softmax_stats is known."""
    shift = tl.load(softmax_stats_ptr + 2 * index, mask=in_rows, other=0.0)
    log_total = tl.load(softmax_stats_ptr + 2 * index + 1, mask=in_rows, other=0.0)
    return (logits - shift[:, None]) - log_total[:, None]


@triton.jit
def weigh_probabilities(log_p, a, e_ptr, index, in_rows):
    """(a - e * log(p)) * p, where p = 0 counts as 0 whatever its logarithm."""
    p = exp(log_p)
    weight = a[:, None]
    if e_ptr is not None:
        e = tl.load(e_ptr + index, mask=in_rows, other=0.0)
        weight = weight - tl.where(p > 0.0, e[:, None] * log_p, 0.0)
    return weight * p


@triton.jit
def exp(x):
    """exp(x), off by rounding x * log2(e) alone: 6e-8 for every 1 in x.

    Results that float32 holds only as subnormal numbers are 0, as a GPU's instruction has it;
    ``tl.exp`` spends four more instructions on them.
    """
    return tl.exp2(x * 1.4426950408889634) if x.dtype == tl.float32 else tl.exp(x)


@triton.jit
def exact_exp(x):
    """exp(x), exact to rounding."""
    y = exp(x)
    if x.dtype == tl.float32:
        # what is lost of x * log2(e), where exp2 is not 0
        scaled = x * 1.4426950408889634
        lost = tl.fma(x, 1.9259629911266175e-8, tl.fma(x, 1.4426950408889634, -scaled))
        y = tl.where(x > -126.0, y * (1.0 + lost * 0.6931471805599453), y)
    return y


@triton.jit
def log(x):
    """The logarithm of numbers that are not subnormal, exact to rounding.

    On NVIDIA's GPUs ``tl.log`` of float32 is off by 2e-7 for every factor of 2 in x.
    """
    y = tl.log(x)
    if x.dtype == tl.float32:
        # x = 2**exponent * mantissa, from sqrt(1/2) on, with the bits of either beside each other
        bits = x.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        # log((1 + z) / (1 - z)) = 2 * (z + z**3 / 3 + z**5 / 5 + ...)
        z = (mantissa - 1.0) / (mantissa + 1.0)
        zz = z * z
        series = zz * (1 / 3 + zz * (1 / 5 + zz * (1 / 7 + zz * (1 / 9))))
        exact = exponent.to(tl.float32) * 0.6931471805599453 + (2.0 * z + 2.0 * z * series)
        # not for 0, infinity and NaN
        y = tl.where((x > 0.0) & (x < float("inf")), exact, y)
    return y


@triton.jit
def tanh(x):
    """The hyperbolic tangent, exact to rounding: Triton has none that its interpreter knows."""
    decay = exp(-2.0 * tl.abs(x))
    size = (1.0 - decay) / (1.0 + decay)
    y = tl.where(x < 0.0, -size, size)
    if x.dtype == tl.float32:
        # 1 - decay cancels near 0, where the Taylor series is exact to 2**-27
        xx = x * x
        series = 1.0 - xx * (1 / 3 - xx * (2 / 15 - xx * (17 / 315 - xx * (62 / 2835))))
        y = tl.where(xx < 0.0625, x * series, y)
    return y
