"""Device functions of the walk along rows of logits: sums over exponentials, kept in range.

A walk meets the logits of a row block by block and keeps, for each row, its largest logit so far
and sums relative to it. When a larger logit comes, the sums are moved to it: the online softmax of
Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

import triton
import triton.language as tl


@triton.jit
def finite_shift(largest):
    """What to subtract before exp: the maximum, or 0 while all is -inf, as -inf - -inf is NaN."""
    return tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def fold_total(x, largest, total):
    """Take a block into each row's maximum and sum(exp(x - maximum))."""
    new_largest = tl.maximum(largest, tl.max(x, axis=1))
    shift = finite_shift(new_largest)
    total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
    return new_largest, total


@triton.jit
def fold_cost(weight, x, old_largest, largest, cost, weight_total):
    """Take a block into sum(weight * (maximum - x)) and sum(weight)."""
    shift = finite_shift(largest)
    # without weight no cost, even at -inf: 0 * inf would be NaN
    block_cost = tl.where(weight != 0.0, weight * (shift[:, None] - x), 0.0)
    cost += (shift - finite_shift(old_largest)) * weight_total + tl.sum(block_cost, axis=1)
    return cost, weight_total + tl.sum(weight, axis=1)


@triton.jit
def fold_product(x, old_largest, largest, old_total, product):
    """Take a block into sum(exp(x - maximum) * (x - maximum)), of which the entropy is made."""
    shift = finite_shift(largest)
    old_shift = finite_shift(old_largest)
    exp_x = tl.exp(x - shift[:, None])
    block_product = tl.where(exp_x > 0.0, exp_x * (x - shift[:, None]), 0.0)
    moved = tl.exp(old_largest - shift) * (product + (old_shift - shift) * old_total)
    return moved + tl.sum(block_product, axis=1)


@triton.jit
def fold_prediction(x, first_cols, old_largest, prediction):
    """Take a block whose rows start at columns into the index of the first maximum."""
    block_largest, block_index = tl.max(x, axis=1, return_indices=True)
    return tl.where(block_largest > old_largest, first_cols + block_index, prediction)


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
        decay = tl.exp(-2.0 * tl.abs(x * CAP[0] / CAP[1]))
        slope = slope * (4.0 * decay / ((1.0 + decay) * (1.0 + decay)))
    return slope


@triton.jit
def log_probabilities(logits, normalizer_ptr, index, in_rows):
    """log(softmax(logits)) of rows whose normalizer is known."""
    shift = tl.load(normalizer_ptr + 2 * index, mask=in_rows, other=0.0)
    log_total = tl.load(normalizer_ptr + 2 * index + 1, mask=in_rows, other=0.0)
    return (logits - shift[:, None]) - log_total[:, None]


@triton.jit
def weigh_probabilities(log_p, a, e_ptr, index, in_rows):
    """(a - e * log(p)) * p, where p = 0 counts as 0 whatever its logarithm."""
    p = tl.exp(log_p)
    weight = a[:, None]
    if e_ptr is not None:
        e = tl.load(e_ptr + index, mask=in_rows, other=0.0)
        weight = weight - tl.where(p > 0.0, e[:, None] * log_p, 0.0)
    return weight * p


@triton.jit
def tanh(x):
    """The hyperbolic tangent, exact to rounding: Triton has none that its interpreter knows."""
    decay = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - decay) / (1.0 + decay)
    y = tl.where(x < 0.0, -size, size)
    if x.dtype == tl.float32:
        # 1 - decay cancels near 0, where the Taylor series is exact to 2**-27
        xx = x * x
        series = 1.0 - xx * (1 / 3 - xx * (2 / 15 - xx * (17 / 315 - xx * (62 / 2835))))
        y = tl.where(xx < 0.0625, x * series, y)
    return y
