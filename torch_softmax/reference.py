"""Every operator in plain differentiable PyTorch: its definition, and the oracle of the tests.

The class axis is the last one; every other axis is batch. Sums are in float32, in float64 for
float64. The notation is that of the kernels: a row's ``softmax_stats`` holds its largest logit and
log(sum(exp(logits - largest))), two numbers whose sum is the log-sum-exp, ``lse``.
"""

import torch
from torch import Tensor

from torch_softmax._layout import compute_dtype, gradient_in_lse


def softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x))."""
    return _log_probabilities(_widened(x, dtype)).exp().to(dtype)


def softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = y * (dy - sum(y * dy))."""
    y, dy = _widened(y, dtype), _widened(dy, dtype)
    return (y * (dy - (y * dy).sum(-1, keepdim=True))).to(dtype)


def log_softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x)))."""
    return _log_probabilities(_widened(x, dtype)).to(dtype)


def log_softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    y, dy = _widened(y, dtype), _widened(dy, dtype)
    return (dy - y.exp() * dy.sum(-1, keepdim=True)).to(dtype)


def capped(logits: Tensor, logit_scale: float, softcap: float | None) -> Tensor:
    """softcap * tanh(logit_scale * logits / softcap), or logit_scale * logits without."""
    x = _widened(logits, logits.dtype)
    x = x if logit_scale == 1 else x * logit_scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def slope(logits: Tensor, logit_scale: float, softcap: float | None) -> Tensor | float:
    """Derivative of :func:`capped`."""
    if softcap is None:
        return logit_scale
    # 1 - y**2 as a product: the square would be rounded, which near 1 is much of the difference
    y = torch.tanh(capped(logits, logit_scale, None) / softcap)
    return (1 - y) * (1 + y) * logit_scale


def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The losses and statistics of each row, with logits as :func:`capped` returns them.

    Returns:
        ``nll`` = lse - logits[target], or for probabilities sum(w * target * (lse - logits)) with
        w the class weights or 1; ``smooth`` = sum(class_weight * (lse - logits));
        ``target_weight`` = sum(w * target), the gradient of nll in lse; ``lse``; ``entropy`` of
        softmax(logits); ``prediction``, the first index of the largest logit; and
        ``softmax_stats``. What is not asked for is empty: ``smooth`` without ``class_weight``,
        ``target_weight`` for class indices, ``entropy`` and ``prediction`` unless ``with_entropy``.
    """
    x = capped(logits, logit_scale, softcap)
    softmax_stats = _normalizer(x)
    cost = -_log_probabilities(x)
    # three tensors, because an operator must not return one twice
    smooth, target_weight, entropy = (softmax_stats.new_empty(0) for _ in range(3))
    prediction = target.new_empty(0, dtype=torch.int64)
    if class_weight is not None:
        smooth = weighted_sum(class_weight, cost)
    if target.is_floating_point():
        share = target if class_weight is None else target * class_weight
        nll, target_weight = weighted_sum(share, cost), share.to(cost.dtype).sum(-1)
    else:
        nll = cost.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if with_entropy:
        # log_total apart from the sum: its rounding would count once for every class
        largest, log_total = softmax_stats.unbind(-1)
        entropy = log_total + weighted_sum(cost.neg().exp(), largest.unsqueeze(-1) - x)
        prediction = x.detach().argmax(-1)
    return nll, smooth, target_weight, softmax_stats.sum(-1), entropy, prediction, softmax_stats


def cross_entropy_backward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    softmax_stats: Tensor | None,
    a: Tensor,
    b: Tensor,
    s: Tensor | None = None,
    e: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """dlogits = (a - e * log(p)) * p - b * w * target - s * class_weight, times capped's slope.

    ``target`` counts as one-hot if it holds indices, and then w = 1. A row whose ``a`` is 0 has no
    gradient through p, whatever NaN it holds. ``softmax_stats`` may be None: it follows from the
    logits.
    """
    x = capped(logits, logit_scale, softcap)
    softmax_stats = _normalizer(x) if softmax_stats is None else softmax_stats
    log_p = (x - softmax_stats[..., :1]) - softmax_stats[..., 1:]
    weight = a.unsqueeze(-1)
    if e is not None:
        # p = 0 counts as 0, whatever its logarithm
        weight = weight - e.unsqueeze(-1) * log_p.masked_fill(log_p == -torch.inf, 0)
    p = log_p.exp()
    dx = weight * p.masked_fill((weight == 0) & p.isnan(), 0)
    if target.is_floating_point():
        share = target if class_weight is None else target * class_weight
        dx = dx - b.unsqueeze(-1) * share
    else:
        dx = dx.scatter_add(-1, target.unsqueeze(-1), -b.unsqueeze(-1))
    if class_weight is not None and s is not None:
        dx = dx - s.unsqueeze(-1) * class_weight
    factor = slope(logits, logit_scale, softcap)
    if isinstance(factor, Tensor):
        factor = factor.masked_fill((dx == 0) & factor.isnan(), 0)
    return (dx * factor).to(logits.dtype)


def cross_entropy_step(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    b: Tensor,
    s: Tensor | None = None,
    z: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``nll``, ``smooth`` and ``lse`` of each row, and the gradient of their weighted sum.

    That sum is sum(b * nll + s * smooth + z * lse**2) over the rows.
    """
    nll, smooth, target_weight, lse, _, _, softmax_stats = cross_entropy_forward(
        logits, target, class_weight, logit_scale, softcap
    )
    a = gradient_in_lse(
        b * target_weight if target.is_floating_point() else b, class_weight, s, z, lse
    )
    dlogits = cross_entropy_backward(
        logits, target, class_weight, softmax_stats, a, b, s, None, logit_scale, softcap
    )
    return nll, smooth, lse, dlogits


def _widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(torch.promote_types(compute_dtype(x.dtype), compute_dtype(dtype)))


def _normalizer(x: Tensor) -> Tensor:
    """Largest value of each row, or 0 for a row of -inf, as -inf - -inf is NaN; and the rest."""
    if x.shape[-1] == 0:
        return torch.stack([x.sum(-1), x.sum(-1).log()], -1)
    largest = x.detach().amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == -torch.inf, 0)
    return torch.cat([largest, (x - largest).exp().sum(-1, keepdim=True).log()], -1)


def _log_probabilities(x: Tensor) -> Tensor:
    softmax_stats = _normalizer(x)
    return (x - softmax_stats[..., :1]) - softmax_stats[..., 1:]


def weighted_sum(weight: Tensor, cost: Tensor) -> Tensor:
    """sum(weight * cost), where no weight means no cost, even an infinite one: 0 * inf is NaN."""
    no_cost = (weight == 0) & (cost == torch.inf)
    return (weight * cost.masked_fill(no_cost, torch.finfo(cost.dtype).max)).sum(-1)
