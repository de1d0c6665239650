"""Every operator in plain differentiable PyTorch: its definition, and the oracle of the tests.

The class axis is the last one; every other axis is batch. Sums are in float32, in float64 for
float64. The notation is that of the kernels: a row's ``normalizer`` holds its largest logit and
log(sum(exp(logits - largest))), two numbers whose sum is the log-sum-exp.
"""

import torch
from torch import Tensor

from torch_softmax._rows import compute_dtype


def softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x)), computed and returned in ``dtype`` or wider."""
    return torch.exp(_log_probabilities(x, dtype)).to(dtype)


def softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = y * (dy - sum(y * dy))."""
    y, dy = y.to(compute_dtype(y.dtype)), dy.to(compute_dtype(y.dtype))
    return (y * (dy - (y * dy).sum(-1, keepdim=True))).to(dtype)


def log_softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x)))."""
    return _log_probabilities(x, dtype).to(dtype)


def log_softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    y, dy = y.to(compute_dtype(y.dtype)), dy.to(compute_dtype(y.dtype))
    return (dy - y.exp() * dy.sum(-1, keepdim=True)).to(dtype)


def cross_entropy_forward(
    logits: Tensor, target: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """nll = lse - logits[target], smooth = sum(class_weight * (lse - logits)), and normalizer."""
    logits = logits.to(compute_dtype(logits.dtype))
    largest = _finite_shift(logits)
    shifted = logits - largest
    log_total = shifted.exp().sum(-1, keepdim=True).log()
    nll = log_total - shifted.gather(-1, target.unsqueeze(-1))
    smooth = torch.zeros_like(nll)
    if class_weight is not None:
        # a class without weight costs nothing, even at -inf: 0 * inf would be NaN
        cost = torch.where(class_weight != 0, class_weight * (log_total - shifted), 0)
        smooth = cost.sum(-1, keepdim=True)
    return nll.squeeze(-1), smooth.squeeze(-1), torch.cat([largest, log_total], -1)


def cross_entropy_backward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    normalizer: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None = None,
) -> Tensor:
    """dlogits = a * softmax(logits) - b * onehot(target) - s * class_weight."""
    # a row that costs nothing has no gradient, whatever NaN it holds
    softmax = torch.exp((logits - normalizer[..., :1]) - normalizer[..., 1:])
    dlogits = torch.where(a.unsqueeze(-1) != 0, a.unsqueeze(-1) * softmax, 0)
    dlogits = dlogits.scatter_add(-1, target.unsqueeze(-1), -b.unsqueeze(-1))
    if class_weight is not None and s is not None:
        dlogits = dlogits - s.unsqueeze(-1) * class_weight
    return dlogits.to(logits.dtype)


def _log_probabilities(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.to(torch.promote_types(compute_dtype(x.dtype), compute_dtype(dtype)))
    shifted = x - _finite_shift(x)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def _finite_shift(x: Tensor) -> Tensor:
    """The largest value of each row, or 0 for a row of -inf, as -inf - -inf is NaN."""
    if x.shape[-1] == 0:
        return x.new_zeros(*x.shape[:-1], 1)
    largest = x.detach().amax(-1, keepdim=True)
    return largest.masked_fill(largest == -torch.inf, 0)
