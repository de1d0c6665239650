"""Device functions of targets: a class index per row, or a probability per class.

The element type of ``target.ptr`` selects one of the two at compile time. q is the one-hot of the
index, or the probabilities.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import exp, softcap, softcap_grad
from .tiles import load_classes, load_tile


class Targets(NamedTuple):
    """For each row: class index, whether the row is counted, whether the index is valid, weight.

    With probabilities all rows are counted and have weight 1, and ``index`` is unused.
    """

    index: Any
    is_counted: Any
    is_class: Any
    weight: Any


class ClassWeights(NamedTuple):
    """Weights of a tile's classes, 0 outside a row: class_weight * probability, class_weight."""

    target: Any
    smooth: Any


@triton.jit
def load_targets(target, class_weight_ptr, rows, n_cols, ignore_index, dtype: tl.constexpr):
    """Targets of a program's rows; with ``ignore_index`` None all rows are counted."""
    if target.ptr.dtype.element_ty.is_floating():
        one = tl.where(rows.exist, 1.0, 0.0).to(dtype)
        targets = Targets(rows.index, rows.exist, rows.exist, one)
    else:
        offsets = rows.outer * target.outer_stride + rows.index * target.row_stride
        index = tl.load(target.ptr + offsets, mask=rows.exist, other=0).to(tl.int64)
        is_counted = rows.exist
        if ignore_index is not None:
            is_counted = is_counted & (index != ignore_index)
        is_class = is_counted & (index >= 0) & (index < n_cols)
        weight = class_weight_at(class_weight_ptr, index, is_counted, n_cols, dtype)
        targets = Targets(index, is_counted, is_class, weight)
    return targets


@triton.jit
def target_offsets(matrix, rows, targets):
    """Offset of each row's class from the start of a matrix."""
    row_start = rows.outer * matrix.outer_stride + rows.index * matrix.row_stride
    return row_start + targets.index * matrix.class_stride


@triton.jit
def load_target_logits(logits, target, rows, targets, dtype: tl.constexpr):
    """The logit at each row's target, NaN where the index is not a class."""
    x = targets.weight
    if not target.ptr.dtype.element_ty.is_floating():
        # a second load of a cached element is cheaper than a search through the tile
        ptrs = logits.ptr + target_offsets(logits, rows, targets)
        x = tl.load(ptrs, mask=targets.is_class, other=float("nan")).to(dtype)
    return x


@triton.jit
def class_weight_at(class_weight_ptr, index, is_counted, n_cols, dtype: tl.constexpr):
    """The weight of each row's class, 0 where the row is not counted."""
    if class_weight_ptr is None:
        weight = tl.where(is_counted, 1.0, 0.0).to(dtype)
    else:
        # clamp invalid targets to a safe address; their row becomes NaN
        safe = tl.minimum(tl.maximum(index, 0), n_cols - 1)
        weight = tl.load(class_weight_ptr + safe, mask=is_counted, other=0.0).to(dtype)
    return weight


@triton.jit
def load_class_weights(
    target, class_weight_ptr, tile, n_cols, TILE: tl.constexpr, dtype: tl.constexpr
):
    """ClassWeights of a tile; the compiler removes the loads of unused weights."""
    smooth = tl.where(tile.in_row, 1.0, 0.0).to(dtype)
    if class_weight_ptr is not None:
        smooth = load_classes(class_weight_ptr, tile.cols, n_cols).to(dtype)
    weight = smooth
    if target.ptr.dtype.element_ty.is_floating():
        probability = load_tile(target, tile, TILE).to(dtype)
        weight = tl.where(tile.in_row, probability, 0.0)
        if class_weight_ptr is not None:
            weight *= smooth
    return ClassWeights(weight, smooth)


@triton.jit
def subtract_class_gradient(gradient, target, weights, coefficients, HAS_SMOOTHING: tl.constexpr):
    """gradient - b * class_weight * probability - s * class_weight for the classes of a tile."""
    if target.ptr.dtype.element_ty.is_floating():
        gradient -= coefficients.b[:, None] * weights.target
    if HAS_SMOOTHING:
        gradient -= coefficients.s[:, None] * weights.smooth
    return gradient


@triton.jit
def one_hot(index, tile, value):
    """``value`` of each row at its class, 0 elsewhere in a tile."""
    return tl.where(tile.cols == index[:, None], value[:, None], 0.0)


@triton.jit
def target_gradient(
    targets,
    target_logits,
    row_max,
    coefficients,
    SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
):
    """The gradient at each row's target, including the term b * onehot(target)."""
    p = exp(softcap(target_logits, SOFTCAP) - row_max)
    gradient = coefficients.a * p - coefficients.b * targets.weight
    if HAS_SMOOTHING:
        gradient -= coefficients.s * targets.weight
    return gradient * softcap_grad(target_logits, SOFTCAP)


@triton.jit
def store_targets(matrix, rows, targets, value):
    """Store ``value`` at each row's target, where ``store_tile`` wrote no one-hot term.

    Comparing every column of the tile with the target instead takes up to 50 % more registers.
    """
    # wait for the thread that stored the element without the one-hot term
    tl.debug_barrier()
    tl.store(matrix.ptr + target_offsets(matrix, rows, targets), value, mask=targets.is_class)
