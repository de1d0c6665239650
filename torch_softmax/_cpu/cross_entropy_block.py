"""Cross-entropy of one block of rows, overwriting one block all the way.

What is rare is left to the reference, which defines it: entropies, and rows with infinities or NaN,
which may be of no account.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._cpu.blocks import row_max, row_sum
from torch_softmax._layout import gradient_in_lse

# PyTorch's exp2 takes a third of the time of its exp: 72 against 210 us for 2**18 elements on one
# core of an AMD EPYC with AVX-512. The product rounds p by no more than 0.4 eps of a row's largest
LOG2_E = math.log2(math.e)


class _Losses(NamedTuple):
    """As in RowOutputs, and what a gradient is made of."""

    nll: Tensor
    smooth: Tensor
    target_weight: Tensor
    lse: Tensor
    largest: Tensor
    log_total: Tensor
    exp_x: Tensor  # relative to the largest logit of the row
    total: Tensor


def _losses(
    x: Tensor,
    largest: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    out: Tensor | None = None,
) -> _Losses:
    target_logit = None if target.is_floating_point() else _gather(x, target)
    # from here on x may be overwritten, as ``out``
    below = torch.sub(x, largest, out=out)
    weighted = None if class_weight is None else below @ class_weight
    expected = target_weight = largest.new_empty(0)
    if target.is_floating_point():
        expected = (below * target).sum(-1)
        target_weight = target.sum(-1)
    exp_x = below.mul_(LOG2_E).exp2_()
    total = row_sum(exp_x)
    log_total = total.log()
    lse = (largest + log_total).squeeze(-1)
    if target_logit is None:
        nll = target_weight * log_total.squeeze(-1) - expected
    else:
        nll = ((largest - target_logit) + log_total).squeeze(-1)
    smooth = nll.new_empty(0)
    if class_weight is not None and weighted is not None:
        smooth = class_weight.sum() * log_total.squeeze(-1) - weighted
    return _Losses(nll, smooth, target_weight, lse, largest, log_total, exp_x, total)


def _gradient(
    exp_x: Tensor,
    a: Tensor,
    b: Tensor,
    target: Tensor,
    s: Tensor | None,
    class_weight: Tensor | None,
    slope: Tensor | float,
) -> Tensor:
    """dlogits, over ``exp_x``; ``a`` is divided by its total and has an axis for the classes."""
    dx = exp_x.mul_(a)
    if target.is_floating_point():
        dx.addcmul_(b.unsqueeze(-1), target, value=-1)
    else:
        dx.scatter_add_(-1, target.unsqueeze(-1), -b.unsqueeze(-1))
    if class_weight is not None and s is not None:
        dx.addcmul_(s.unsqueeze(-1), class_weight, value=-1)
    # 1 for logits that are neither scaled nor capped
    return dx.mul_(slope) if isinstance(slope, Tensor) or slope != 1 else dx


def _share(target: Tensor, class_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Target probabilities times class weights; class indices as they are."""
    if not target.is_floating_point():
        return target
    return target.to(dtype) if class_weight is None else target * class_weight


def _bad_rows(rows: _Losses) -> Tensor | None:
    # the loss of a class of logit -inf is infinite, rightly
    return _not_finite(
        rows.lse, rows.smooth, *([rows.nll] if rows.target_weight.numel() > 0 else [])
    )


def _not_finite(*row_vectors: Tensor) -> Tensor | None:
    """Mask of the rows with infinities or NaN; None, which is soon found out, if there are none."""
    bad = None
    for vector in row_vectors:
        if not math.isfinite(vector.sum().item()):
            bad = ~vector.isfinite() if bad is None else bad | ~vector.isfinite()
    return bad


def _rows_of(bad: Tensor, vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector[bad]


def _mend(bad: Tensor, results: Sequence[Tensor], right_ones: Sequence[Tensor]) -> None:
    for result, right in zip(results, right_ones, strict=True):
        if right.numel() > 0:
            result[bad] = right.to(result.dtype)


def forward_block(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> tuple[Tensor, ...]:
    """``reference.cross_entropy_forward``."""
    options = (class_weight, logit_scale, softcap, with_entropy)
    if with_entropy:
        return reference.cross_entropy_forward(logits, target, *options)
    x = reference.apply_softcap(logits, logit_scale, softcap)
    rows = _losses(x, row_max(x), _share(target, class_weight, x.dtype), class_weight)
    softmax_stats = torch.cat([rows.largest, rows.log_total], -1)
    entropy, prediction = x.new_empty(0), x.new_empty(0, dtype=torch.int64)
    results = (
        rows.nll,
        rows.smooth,
        rows.target_weight,
        rows.lse,
        entropy,
        prediction,
        softmax_stats,
    )
    bad = _bad_rows(rows)
    if bad is not None:
        right = reference.cross_entropy_forward(logits[bad], target[bad], *options)
        _mend(bad, results, right)
    return results


def backward_block(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    """``reference.cross_entropy_backward``."""
    exact = partial(reference.cross_entropy_backward, logit_scale=logit_scale, softcap=softcap)
    if e is not None:
        return exact(logits, target, class_weight, softmax_stats, a, b, s, e)
    x = reference.apply_softcap(logits, logit_scale, softcap)
    slope = reference.softcap_grad(logits, logit_scale, softcap)
    largest, log_total = softmax_stats.split(1, -1)
    exp_x = (x - largest).mul_(LOG2_E).exp2_()
    over_total = log_total.neg().exp_()
    share = _share(target, class_weight, x.dtype)
    dx = _gradient(exp_x, a.unsqueeze(-1) * over_total, b, share, s, class_weight, slope)
    bad = _not_finite(softmax_stats.sum(-1))
    if bad is not None:
        rows = (softmax_stats[bad], a[bad], b[bad], _rows_of(bad, s))
        _mend(bad, [dx], [exact(logits[bad], target[bad], class_weight, *rows)])
    return dx


def step_block(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    b: Tensor,
    s: Tensor | None,
    z: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``reference.cross_entropy_step``, its gradient in ``out``, which may be logits, if it can."""
    x = reference.apply_softcap(logits, logit_scale, softcap)
    slope = reference.softcap_grad(logits, logit_scale, softcap)
    share = _share(target, class_weight, x.dtype)
    largest = row_max(x)
    if x is not logits or class_weight is not None or target.is_floating_point():
        # the logits are read again
        out = None
    elif (
        out is not None
        and out.data_ptr() == logits.data_ptr()
        and not math.isfinite(largest.sum().item())
    ):
        # rows are to be mended
        logits = logits.clone()
    rows = _losses(x, largest, share, class_weight, out)
    of_nll = b * rows.target_weight if target.is_floating_point() else b
    a = gradient_in_lse(of_nll, class_weight, s, z, rows.lse).unsqueeze(-1) / rows.total
    dx = _gradient(rows.exp_x, a, b, share, s, class_weight, slope)
    results = (rows.nll, rows.smooth, rows.lse, dx)
    bad = _bad_rows(rows)
    if bad is not None:
        coefficients = (b[bad], _rows_of(bad, s), _rows_of(bad, z), logit_scale, softcap)
        right = reference.cross_entropy_step(logits[bad], target[bad], class_weight, *coefficients)
        _mend(bad, results, right)
    return results


def _gather(x: Tensor, target: Tensor) -> Tensor:
    try:
        return x.gather(-1, target.unsqueeze(-1))
    except RuntimeError:
        check_classes(target, x.shape[-1])
        raise


def check_classes(target: Tensor, n_classes: int) -> None:
    """Raise IndexError unless every target is a class; on a CPU, looking costs no waiting."""
    if target.numel() == 0:
        return
    for value in target.aminmax():
        if not 0 <= value.item() < n_classes:
            raise class_error(value.item(), n_classes)


def class_error(target: int | float, n_classes: int) -> IndexError:
    """The error for a target that is no class."""
    return IndexError(
        f"cross_entropy needs target in [0, {n_classes}) or equal to ignore_index, got {target}"
    )
