"""Every operator in plain differentiable PyTorch: its definition, and the oracle of the tests.

The public functions call it where an ``autograd.Function`` does not work: under torch.func, in
forward mode, for second derivatives and in exported programs. The class axis is the last one; every
other axis is batch. Sums are in float32, in float64 for float64. The notation is that of the
kernels: ``softmax_stats`` of a row are row_max, its largest logit, and log_sum_exp =
log(sum(exp(logits - row_max))); their sum is the log-sum-exp, ``lse``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as _torch_cross_entropy

from torch_softmax._layout import RowOutputs, coefficient_a, compute_dtype
from torch_softmax._options import LossOptions


def softmax_forward(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x))."""
    return log_softmax_forward(_widened(x, dtype), dim, compute_dtype(dtype)).exp().to(dtype)


def softmax_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """dx = y * (dy - sum(y * dy))."""
    y, dy = _widened(y, dtype), _widened(dy, dtype)
    return (y * (dy - (y * dy).sum(dim, keepdim=True))).to(dtype)


def log_softmax_forward(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x)))."""
    x = _widened(x, dtype).movedim(dim, -1)
    return _log_probabilities(x).movedim(-1, dim).to(dtype)


def log_softmax_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    y, dy = _widened(y, dtype), _widened(dy, dtype)
    return (dy - y.exp() * dy.sum(dim, keepdim=True)).to(dtype)


def apply_softcap(logits: Tensor, logit_scale: float, softcap: float | None) -> Tensor:
    """softcap * tanh(logit_scale * logits / softcap), or logit_scale * logits without softcap."""
    x = _widened(logits, logits.dtype)
    x = x if logit_scale == 1 else x * logit_scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def softcap_grad(logits: Tensor, logit_scale: float, softcap: float | None) -> Tensor | float:
    """Derivative of :func:`apply_softcap`."""
    if softcap is None:
        return logit_scale
    # 1 - y**2 as a product: near 1 the difference would cancel to the rounding error of the square
    y = torch.tanh(apply_softcap(logits, logit_scale, None) / softcap)
    return (1 - y) * (1 + y) * logit_scale


def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
) -> RowOutputs:
    """The losses and statistics of each row, with logits as :func:`apply_softcap` returns them.

    Returns:
        ``nll`` = lse - logits[target], or for probabilities sum(w * target * (lse - logits)) with
        w the class weights or 1; ``smooth`` = sum(class_weight * (lse - logits));
        ``target_weight`` = sum(w * target), the gradient of nll in lse; ``lse``; ``entropy`` of
        softmax(logits); ``prediction``, the first index of the largest logit; and
        ``softmax_stats``. Disabled outputs are empty: ``smooth`` without ``class_weight``,
        ``target_weight`` for class indices, ``entropy`` and ``prediction`` unless ``with_entropy``.
    """
    x = apply_softcap(logits, logit_scale, softcap)
    softmax_stats = row_softmax_stats(x)
    row_max, log_sum_exp = softmax_stats.unbind(-1)
    cost = -_log_probabilities(x)
    # three tensors, because an operator must not return one twice
    smooth, target_weight, entropy = (softmax_stats.new_empty(0) for _ in range(3))
    prediction = target.new_empty(0, dtype=torch.int64)
    if class_weight is not None:
        smooth = weighted_sum(class_weight, cost)
    if target.is_floating_point():
        weights = target if class_weight is None else target * class_weight
        nll, target_weight = weighted_sum(weights, cost), weights.to(cost.dtype).sum(-1)
    else:
        nll = _cost_of_target(cost, target)
    if with_entropy:
        # log_sum_exp outside the sum: inside, its rounding error would count once per class
        entropy = log_sum_exp + weighted_sum(cost.neg().exp(), row_max.unsqueeze(-1) - x)
        prediction = x.detach().argmax(-1)
    lse = row_max + log_sum_exp
    return RowOutputs(nll, smooth, target_weight, lse, entropy, prediction, softmax_stats)


def cross_entropy_backward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None = None,
    e: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """dlogits = (a - e * log(p)) * p - b * w * target - s * class_weight, times softcap_grad.

    If ``target`` holds class indices, their one-hot takes its place and w = 1. A row whose ``a`` is
    0 has no gradient through p, even if its logits are NaN.
    """
    x = apply_softcap(logits, logit_scale, softcap)
    log_p = (x - softmax_stats[..., :1]) - softmax_stats[..., 1:]
    weight = a.unsqueeze(-1)
    if e is not None:
        # a class with p = 0 contributes 0, although its logarithm is -inf
        weight = weight - e.unsqueeze(-1) * log_p.masked_fill(log_p == -torch.inf, 0)
    p = log_p.exp()
    dx = weight * p.masked_fill((weight == 0) & p.isnan(), 0)
    if target.is_floating_point():
        weights = target if class_weight is None else target * class_weight
        dx = dx - b.unsqueeze(-1) * weights
    else:
        dx = dx.scatter_add(-1, target.unsqueeze(-1), -b.unsqueeze(-1))
    if class_weight is not None and s is not None:
        dx = dx - s.unsqueeze(-1) * class_weight
    factor = softcap_grad(logits, logit_scale, softcap)
    if isinstance(factor, Tensor):
        factor = factor.masked_fill((dx == 0) & factor.isnan(), 0)
    return (dx * factor).to(logits.dtype)


class LossTerms(NamedTuple):
    """The loss as a function of the row outputs, determined by the options.

    The loss of a row is ``nll_factor * row_weight * nll + smooth_factor * smooth + z_loss *
    lse**2``, without ``row_weight`` where that is None, and 0 for a row in the mask ``ignored``. A
    sum of losses is divided by ``denominator``.
    """

    row_weight: Tensor | None
    ignored: Tensor | None
    nll_factor: float
    smooth_factor: float
    z_loss: float
    denominator: Tensor | int | None

    def row_losses(self, rows: RowOutputs) -> Tensor:
        """The loss of each row."""
        loss, lse = rows.nll, rows.lse
        if self.row_weight is not None:
            # masked before the product, whose derivative in the weight would be NaN
            loss = loss if self.ignored is None else loss.masked_fill(self.ignored, 0)
            loss = self.row_weight * loss
        if self.smooth_factor > 0:
            loss = self.nll_factor * loss + self.smooth_factor * rows.smooth
        if self.z_loss > 0:
            # masked before the square: the derivative of a NaN's square is NaN, not 0
            lse = lse if self.ignored is None else lse.masked_fill(self.ignored, 0)
            loss = loss + self.z_loss * lse.square()
        return loss if self.ignored is None else loss.masked_fill(self.ignored, 0)

    def reduced_loss(self, rows: RowOutputs) -> Tensor:
        """The loss of all rows."""
        loss = self.row_losses(rows).sum()
        return loss if self.denominator is None else loss / self.denominator

    def loss(self, rows: RowOutputs, reduction: str) -> Tensor:
        """The loss of each row for reduction "none", else of all rows."""
        return self.row_losses(rows) if reduction == "none" else self.reduced_loss(rows)

    def coefficients(
        self, class_weight: Tensor | None, rows: RowOutputs, dloss: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``a``, ``b`` and ``s`` of the gradient of the loss, times ``dloss``."""
        scale = torch.ones_like(rows.lse)
        if dloss is not None:
            scale = scale * dloss
        if self.denominator is not None:
            scale = scale / self.denominator
        if self.ignored is not None:
            # after the division: the mean of no row divides by 0, and ignored rows have gradient 0
            scale = scale.masked_fill(self.ignored, 0)
        b = scale if self.row_weight is None else scale * self.row_weight
        b = b * self.nll_factor
        s = scale * self.smooth_factor if self.smooth_factor > 0 else None
        z = scale * self.z_loss if self.z_loss > 0 else None
        nll_part = b * rows.target_weight if rows.target_weight.numel() else b
        return coefficient_a(nll_part, class_weight, s, z, rows.lse), b, s


def loss_terms(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    options: LossOptions,
) -> tuple[Tensor, Tensor | None, LossTerms]:
    """Target and class weights as ``cross_entropy_forward`` takes them, and the loss terms."""
    if options.reduction == "none" and denominator is not None:
        raise ValueError("cross_entropy needs denominator=None for reduction='none'")
    n_classes, dtype = logits.shape[-1], compute_dtype(logits.dtype)
    smoothing = options.label_smoothing
    weight = None if weight is None else weight.to(dtype)
    row_weight = class_weight = None
    target, ignored = without_ignored(target, options.ignore_index)
    if ignored is None:
        class_weight = weight
    elif weight is not None:
        # clamp invalid targets to a safe index; the nll of their rows is NaN
        row_weight = weight[target.clamp(0, n_classes - 1)]
    if smoothing > 0 and class_weight is None:
        class_weight = logits.new_ones(n_classes, dtype=dtype) if weight is None else weight
    if options.reduction == "mean" and denominator is None:
        denominator = mean_denominator(logits, row_weight, ignored)
    terms = LossTerms(
        row_weight=row_weight,
        ignored=ignored,
        nll_factor=1 - smoothing,
        smooth_factor=smoothing / n_classes if smoothing > 0 else 0.0,
        z_loss=options.z_loss,
        denominator=denominator,
    )
    return target, class_weight, terms


def without_ignored(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Class indices, 0 for ignored rows, and the mask of these rows; or probabilities and None."""
    ignored = ignored_mask(target, ignore_index)
    return (target, None) if ignored is None else (target.long().masked_fill(ignored, 0), ignored)


def ignored_mask(target: Tensor, ignore_index: int) -> Tensor | None:
    """The mask of the ignored rows; None for probabilities."""
    # int64 before the comparison: ignore_index would wrap around in a narrower type
    return None if target.is_floating_point() else target.long() == ignore_index


def mean_denominator(logits: Tensor, row_weight: Tensor | None, ignored: Tensor | None) -> Tensor:
    """The denominator of the mean, as a tensor: reading its value would stop the stream."""
    if ignored is None:
        # math.prod, because Size.numel() specializes symbolic sizes
        return torch.full((), math.prod(logits.shape[:-1]), device=logits.device)
    if row_weight is None:
        return (~ignored).sum()
    return row_weight.masked_fill(ignored, 0).sum()


def compose_loss(
    row_forward: Callable[..., Any],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    *row_options: Any,
) -> tuple[Tensor, RowOutputs]:
    """The loss computed from the row outputs of ``row_forward``, and these outputs.

    ``row_forward`` is :func:`cross_entropy_forward` or a faster implementation.
    """
    target, class_weight, terms = loss_terms(logits, target, weight, denominator, options)
    arguments = (target, class_weight, options.logit_scale, options.softcap)
    if row_forward is not cross_entropy_forward:
        rows = RowOutputs(*row_forward(logits, *arguments, *row_options))
        return terms.loss(rows, options.reduction).to(dtype), rows
    # an ignored row has no gradient, whatever NaN it holds
    counted = logits
    if terms.ignored is not None:
        counted = logits.masked_fill(terms.ignored.unsqueeze(-1), 0)
    rows = cross_entropy_forward(counted, *arguments)
    loss = terms.loss(rows, options.reduction).to(dtype)
    # but it has statistics
    return loss, cross_entropy_forward(logits, *arguments, True) if any(row_options) else rows


def is_torch_loss(target: Tensor, denominator: Tensor | None, options: LossOptions) -> bool:
    """Whether ``torch.nn.functional.cross_entropy`` can compute the loss.

    An invalid class index aborts a CUDA program there, so class indices must be on the CPU.
    """
    is_safe = target.device.type == "cpu" or target.is_floating_point()
    return is_safe and denominator is None and options[3:] == (0, None, 1)


def torch_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
) -> Tensor:
    """The loss by PyTorch's own function, which supports all compositions of transforms.

    torch.compile of nested forward mode fails at the product of a number and a tensor (torch 2.14).
    What is better here than in PyTorch stays: an ignored row has no gradient, whatever NaN it
    holds, and a class without weight or target probability costs nothing where its logit is -inf.
    """
    x = _widened(logits, logits.dtype)
    weight = None if weight is None else weight.to(x.dtype)
    if target.is_floating_point():
        target = target.to(x.dtype)
        class_weights = target if options.label_smoothing == 0 else torch.ones_like(target)
        class_weights = class_weights if weight is None else class_weights * weight
        x = _without_cost(x, class_weights == 0)
        target = target.movedim(-1, min(1, target.dim() - 1))
    else:
        target = target.long()
        x = x.masked_fill((target == options.ignore_index).unsqueeze(-1), 0)
        if weight is not None and options.label_smoothing > 0:
            is_target = target.unsqueeze(-1) == torch.arange(x.shape[-1], device=x.device)
            x = _without_cost(x, (weight == 0) & ~is_target)
    x = x.movedim(-1, min(1, x.dim() - 1))
    loss = _torch_cross_entropy(
        x,
        target,
        weight,
        ignore_index=options.ignore_index,
        reduction=options.reduction,
        label_smoothing=options.label_smoothing,
    )
    return loss.to(dtype)


def _without_cost(x: Tensor, no_cost: Tensor) -> Tensor:
    """``x`` with a finite number for -inf where it costs nothing: 0 * inf would be NaN.

    A row of -inf alone stays as it is, and its softmax NaN.
    """
    no_cost = no_cost & (x == -torch.inf) & (x > -torch.inf).any(-1, keepdim=True)
    return x.masked_fill(no_cost, torch.finfo(x.dtype).min)


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    denominator: Tensor | None = None,
    dtype: torch.dtype | None = None,
    with_gradient: bool = True,
    *settings: Any,
    dloss: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The losses of rows, reduced, and their gradient, which is empty unless with_gradient.

    ``dloss``, the incoming gradient of the loss, is a factor of the gradient.
    """
    options = LossOptions(*settings)
    target, class_weight, terms = loss_terms(logits, target, weight, denominator, options)
    scaling = (options.logit_scale, options.softcap)
    rows = cross_entropy_forward(logits, target, class_weight, *scaling)
    loss = terms.loss(rows, options.reduction).to(dtype or logits.dtype)
    if not with_gradient:
        return loss, logits.new_empty(0)
    coefficients = terms.coefficients(class_weight, rows, dloss)
    arguments = (class_weight, rows.softmax_stats, *coefficients, None, *scaling)
    return loss, cross_entropy_backward(logits, target, *arguments)


def _widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(torch.promote_types(compute_dtype(x.dtype), compute_dtype(dtype)))


def row_softmax_stats(x: Tensor) -> Tensor:
    """row_max and log_sum_exp; row_max is 0 for a row of -inf, because -inf - -inf is NaN."""
    if x.shape[-1] == 0:
        return torch.stack([x.sum(-1), x.sum(-1).log()], -1)
    row_max = x.detach().amax(-1, keepdim=True)
    row_max = row_max.masked_fill(row_max == -torch.inf, 0)
    return torch.cat([row_max, (x - row_max).exp().sum(-1, keepdim=True).log()], -1)


def _log_probabilities(x: Tensor) -> Tensor:
    softmax_stats = row_softmax_stats(x)
    return (x - softmax_stats[..., :1]) - softmax_stats[..., 1:]


def _cost_of_target(cost: Tensor, target: Tensor) -> Tensor:
    """``cost`` at the target; an invalid target raises IndexError on the CPU, else gives NaN."""
    if cost.device.type == "cpu":
        return cost.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    # a gather outside the row would make every later CUDA call of the process fail
    is_class = (target >= 0) & (target < cost.shape[-1])
    nll = cost.gather(-1, target.masked_fill(~is_class, 0).unsqueeze(-1)).squeeze(-1)
    return nll.masked_fill(~is_class, torch.nan)


def weighted_sum(weight: Tensor, cost: Tensor) -> Tensor:
    """sum(weight * cost), with 0 for weight 0 and infinite cost, where 0 * inf is NaN."""
    no_cost = (weight == 0) & (cost == torch.inf)
    return (weight * cost.masked_fill(no_cost, torch.finfo(cost.dtype).max)).sum(-1)
