"""The rows of a linear head's logits, which no tensor holds all at once."""

import torch
from torch import Tensor

from torch_softmax._ops.linear_chunks import LinearHead, zero_rows


def losses_per_row(target: Tensor) -> tuple[int, ...]:
    """() for one loss per row of ``x``, else (losses,); the class axis of a target is its last."""
    return target.shape[1:-1] if target.is_floating_point() else target.shape[1:]


def classes_last(logits: Tensor, target: Tensor) -> Tensor:
    """Logits (rows, classes * losses) with their classes as the last axis."""
    losses = losses_per_row(target)
    return logits.unflatten(1, (-1, *losses)).transpose(1, 2) if losses else logits


def placeholder_logits(head: LinearHead, target: Tensor) -> Tensor:
    """One element that is expanded to the shape of all logits, for what asks for that shape."""
    losses = losses_per_row(target)
    n_classes = len(head.weight) // losses[0] if losses else len(head.weight)
    shape = (len(head.x), *losses, n_classes)
    return head.x.new_zeros((), dtype=head.logits_dtype).expand(shape)


def rows_of(ignored: Tensor | None) -> Tensor | None:
    """The rows of ``x`` all of whose losses are in a mask, if there is one."""
    return ignored.all(1) if ignored is not None and ignored.dim() == 2 else ignored


def dense_logits(head: LinearHead, target: Tensor, ignored: Tensor | None) -> Tensor:
    """All logits, classes last, differentiable; those of ignored rows are the bias."""
    x, dtype = zero_rows(head.x, rows_of(ignored)), head.logits_dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    logits = torch.nn.functional.linear(x.to(dtype), head.weight.to(dtype), bias)
    return classes_last(logits, target)
