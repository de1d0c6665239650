"""Device functions of sums over the exponentials of a row, and their online form.

Online softmax reads a row block by block and keeps the largest logit so far and sums relative to
it; a larger logit rescales the sums (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018).

A block has three axes here, (row, partial, element). A partial is the elements that one thread
holds. Each partial has its own maximum and sums, so threads do not synchronize while blocks are
read; the partials of a row are combined after its last block.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import exp, log, softcap
from .tiles import load_tile


class SoftmaxPartials(NamedTuple):
    """max(x) and sum(exp(x - max(x))) of each partial."""

    row_max: Any
    sum_exp: Any


class SoftmaxStats(NamedTuple):
    """For each row: max(x), made finite, sum(exp(x - row_max)), and the logarithm of that sum."""

    row_max: Any
    sum_exp: Any
    log_sum_exp: Any


class Cost(NamedTuple):
    """sum(weight * (row_max - x)) and sum(weight)."""

    cost: Any
    weight: Any


class RowSums(NamedTuple):
    """Sums of each partial: softmax, cost of the target, cost of label smoothing."""

    softmax: SoftmaxPartials
    target: Cost
    smooth: Cost


class RowStats(NamedTuple):
    """Statistics of each row: softmax, cost of the target, cost of label smoothing."""

    softmax: SoftmaxStats
    target: Cost
    smooth: Cost


@triton.jit
def load_logits(
    logits,
    tile,
    is_edge,
    dtype: tl.constexpr,
    TILE: tl.constexpr,
    SOFTCAP: tl.constexpr = None,
    EVICTION: tl.constexpr = None,
    needed_rows=None,
):
    """Logits after the softcap, -inf outside a row, because exp(-inf) adds 0 to a sum.

    ``is_edge`` is False for a tile whose columns are all inside their rows, which needs no mask.
    """
    x = load_tile(logits, tile, TILE, EVICTION, needed_rows, OTHER=-float("inf")).to(dtype)
    changes_infinity: tl.constexpr = SOFTCAP is not None and (
        SOFTCAP.scale <= 0.0 or SOFTCAP.cap is not None
    )
    if SOFTCAP is not None:
        x = softcap(x, SOFTCAP)
    # vectors contain elements outside a row, and some softcaps change the -inf of masked elements
    if TILE.unaligned_rows or TILE.packed or changes_infinity:  # noqa: SIM102, constants alone
        if is_edge:
            x = tl.where(tile.in_row, x, -float("inf"))
    return x


@triton.jit
def as_partials(x, N_PARTIALS: tl.constexpr):
    """A block (rows, columns) as (rows, partials, elements)."""
    return tl.reshape(x, (x.shape[0], N_PARTIALS, x.shape[1] // N_PARTIALS))


@triton.jit
def finite_max(row_max):
    """The maximum, or 0 where all is -inf, because -inf - -inf is NaN."""
    return tl.where(row_max == -float("inf"), 0.0, row_max)


@triton.jit
def zero_partials(ROWS: tl.constexpr, N_PARTIALS: tl.constexpr, dtype: tl.constexpr):
    """The empty sum of each partial."""
    return tl.zeros((ROWS, N_PARTIALS), dtype)


@triton.jit
def empty_partials(ROWS: tl.constexpr, N_PARTIALS: tl.constexpr, dtype: tl.constexpr):
    """SoftmaxPartials of an empty row."""
    zeros = zero_partials(ROWS, N_PARTIALS, dtype)
    return SoftmaxPartials(zeros - float("inf"), zeros)


@triton.jit
def online_softmax_update(partials, x):
    """Add a block to the maximum and sum(exp(x - maximum)) of each partial."""
    row_max = tl.maximum(partials.row_max, tl.max(x, axis=2))
    reference = finite_max(row_max)
    block_sum = tl.sum(exp(x - reference[:, :, None]), axis=2)
    return SoftmaxPartials(
        row_max, partials.sum_exp * exp(partials.row_max - reference) + block_sum
    )


@triton.jit
def combine_partials(partials):
    """SoftmaxStats of each row."""
    row_max = finite_max(tl.max(partials.row_max, axis=1))
    sum_exp = tl.sum(partials.sum_exp * exp(partials.row_max - row_max[:, None]), axis=1)
    return SoftmaxStats(row_max, sum_exp, log(sum_exp))


@triton.jit
def costs_of(weight, x, row_max):
    """weight * (row_max - x), and 0 for weight 0 even if x is -inf, where 0 * inf is NaN."""
    return tl.where(weight != 0.0, weight * (row_max - x), 0.0)


@triton.jit
def update_cost(sums, weight, x, old_max, new_max):
    """Add a block to the cost of each partial, relative to its new maximum."""
    reference = finite_max(new_max)
    block_cost = tl.sum(costs_of(weight, x, reference[:, :, None]), axis=2)
    rebased = sums.cost + (reference - finite_max(old_max)) * sums.weight
    return Cost(rebased + block_cost, sums.weight + tl.sum(weight, axis=2))


@triton.jit
def combine_cost(sums, partials, row_max):
    """Cost of each row from those of its partials."""
    rebased = sums.cost + (row_max[:, None] - finite_max(partials.row_max)) * sums.weight
    return Cost(tl.sum(rebased, axis=1), tl.sum(sums.weight, axis=1))


@triton.jit
def tile_cost(weight, x, row_max, weight_sum=None):
    """Cost of each row from a tile that holds whole rows; None has the weights summed."""
    cost = tl.sum(costs_of(weight, x, row_max[:, None]), axis=1)
    if weight_sum is None:
        weight_sum = tl.sum(weight, axis=1)
    # weight may have shape (1, cols), which broadcasts over the rows
    return Cost(cost, tl.zeros_like(cost) + weight_sum)


@triton.jit
def index_cost(targets, target_logits, row_max):
    """Cost of each row for a class index."""
    return Cost(targets.weight * (row_max - target_logits), targets.weight)


@triton.jit
def cost_to_lse(cost, softmax):
    """sum(weight * (lse - x)) of each row."""
    return cost.cost + cost.weight * softmax.log_sum_exp


@triton.jit
def empty_row_sums(ROWS: tl.constexpr, N_PARTIALS: tl.constexpr, dtype: tl.constexpr):
    """RowSums of empty rows."""
    zeros = zero_partials(ROWS, N_PARTIALS, dtype)
    empty = Cost(zeros, zeros)
    return RowSums(empty_partials(ROWS, N_PARTIALS, dtype), empty, empty)


@triton.jit
def update_row_sums(sums, x, target, weights, HAS_SMOOTHING: tl.constexpr):
    """Add a block to the sums of each partial."""
    N_PARTIALS: tl.constexpr = x.shape[1]
    softmax = online_softmax_update(sums.softmax, x)
    old_max = sums.softmax.row_max
    target_cost = sums.target
    if target.ptr.dtype.element_ty.is_floating():
        weight = as_partials(weights.target, N_PARTIALS)
        target_cost = update_cost(target_cost, weight, x, old_max, softmax.row_max)
    smooth_cost = sums.smooth
    if HAS_SMOOTHING:
        weight = as_partials(weights.smooth, N_PARTIALS)
        smooth_cost = update_cost(smooth_cost, weight, x, old_max, softmax.row_max)
    return RowSums(softmax, target_cost, smooth_cost)


@triton.jit
def combine_row_sums(sums, target, targets, target_logits):
    """RowStats of rows that were read block by block."""
    stats = combine_partials(sums.softmax)
    smooth_cost = combine_cost(sums.smooth, sums.softmax, stats.row_max)
    if target.ptr.dtype.element_ty.is_floating():
        target_cost = combine_cost(sums.target, sums.softmax, stats.row_max)
    else:
        target_cost = index_cost(targets, target_logits, stats.row_max)
    return RowStats(stats, target_cost, smooth_cost)


@triton.jit
def tile_row_stats(x, target, targets, target_logits, class_weight_ptr, weights, n_cols):
    """RowStats of rows that one tile holds, and exp(x - row_max)."""
    row_max = finite_max(tl.max(x, axis=1))
    exp_x = exp(x - row_max[:, None])
    sum_exp = tl.sum(exp_x, axis=1)
    if target.ptr.dtype.element_ty.is_floating():
        target_cost = tile_cost(weights.target, x, row_max)
    else:
        target_cost = index_cost(targets, target_logits, row_max)
    softmax = SoftmaxStats(row_max, sum_exp, log(sum_exp))
    # a sum of ones would move the tile between the thread blocks of a cluster
    weight_sum = n_cols if class_weight_ptr is None else None
    smooth_cost = tile_cost(weights.smooth, x, row_max, weight_sum)
    return RowStats(softmax, target_cost, smooth_cost), exp_x


@triton.jit
def update_entropy(product, x, old, new):
    """Add a block to sum(exp(x - maximum) * (x - maximum)), from which the entropy follows."""
    reference = finite_max(new.row_max)
    exp_x = exp(x - reference[:, :, None])
    block_product = tl.where(exp_x > 0.0, exp_x * (x - reference[:, :, None]), 0.0)
    return rebase_entropy(product, old, reference) + tl.sum(block_product, axis=2)


@triton.jit
def rebase_entropy(product, partials, reference):
    """sum(exp(x - reference) * (x - reference)) from the same sum relative to the maximum."""
    distance = finite_max(partials.row_max) - reference
    return exp(partials.row_max - reference) * (product + distance * partials.sum_exp)


@triton.jit
def combine_entropy(product, partials, softmax):
    """Entropy of each row's softmax: log_sum_exp - sum(p * (x - row_max))."""
    product = tl.sum(rebase_entropy(product, partials, softmax.row_max[:, None]), axis=1)
    return softmax.log_sum_exp - product / softmax.sum_exp


@triton.jit
def update_prediction(prediction, x, cols, old_max):
    """The column of each partial's first maximum."""
    block_max, element = tl.max(x, axis=2, return_indices=True)
    return tl.where(block_max > old_max, tl.min(cols, axis=2) + element, prediction)


@triton.jit
def combine_prediction(prediction, partials):
    """The column of each row's first maximum."""
    is_max = partials.row_max == tl.max(partials.row_max, axis=1)[:, None]
    return tl.min(tl.where(is_max, prediction, 2**31 - 1), axis=1)
