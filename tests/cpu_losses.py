"""The loss operator called directly, and what it must return."""

import torch
import torch.nn.functional as F

from torch_softmax._layout import compute_dtype

OPERATORS = torch.ops.torch_softmax
OPTIONS = {
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "softcap": None,
    "logit_scale": 1.0,
}


def loss_and_gradient(
    logits, target, weight=None, denominator=None, inplace=False, dloss=None, **options
):
    """The operator's results, for logits with the class axis last."""
    values = (OPTIONS | options).values()
    args = (logits, target, weight, denominator, compute_dtype(logits.dtype))
    if inplace:
        return OPERATORS.cross_entropy_loss_inplace(*args, *values, dloss=dloss), logits
    return OPERATORS.cross_entropy_loss(*args, True, *values, dloss=dloss)


def loss_alone(logits, target, weight=None, **options):
    values = (OPTIONS | options).values()
    dtype = compute_dtype(logits.dtype)
    return OPERATORS.cross_entropy_loss(logits, target, weight, None, dtype, False, *values)


def torch_loss_and_gradient(
    logits,
    target,
    weight=None,
    denominator=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
    softcap=None,
    logit_scale=1.0,
):
    """The same composed of PyTorch's functions, which sum float32 where the operator does."""
    leaf = logits.detach().requires_grad_()
    x = leaf.to(compute_dtype(logits.dtype)) * logit_scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    weight = None if weight is None else weight.to(x.dtype)
    counted = torch.ones(x.shape[:-1], dtype=torch.bool)
    if target.is_floating_point():
        divisor, target = counted.numel(), target.to(x.dtype)
    else:
        target, counted = target.long(), target != ignore_index
        divisor = counted.sum() if weight is None else weight[target[counted]].sum()
    channels = [t.movedim(-1, 1) if t.dim() > 2 else t for t in (x, target)]
    losses = F.cross_entropy(
        channels[0],
        channels[1] if target.is_floating_point() else target,
        weight,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    loss = (losses + z_loss * torch.where(counted, x.logsumexp(-1), 0).square()).sum()
    if reduction == "mean":
        loss = loss / (divisor if denominator is None else denominator)
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def double(value):
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


def some_targets(logits, kind="classes"):
    """A target of each row; every fifth class is ignored."""
    if kind == "probabilities":
        return torch.rand(logits.shape).softmax(-1).to(logits.dtype)
    target = torch.randint(logits.shape[-1], logits.shape[:-1])
    target.view(-1)[1::5] = -100
    return target
