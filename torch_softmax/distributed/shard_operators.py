"""Registered operators: what a rank computes of its own classes, between the collectives."""

from typing import Any

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._layout import RowOutputs, compute_dtype
from torch_softmax._ops.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_backward_inplace,
    cross_entropy_forward,
)
from torch_softmax._ops.registration import register_composed
from torch_softmax.distributed.shard_rows import HEADER_LENGTH, RowNeeds, packed_rows


def local_target(target: Tensor, first_class: int, n_local: int) -> tuple[Tensor, Tensor]:
    """Class indices among the rank's own, 0 for those it does not hold, and which it holds."""
    local = target - first_class
    is_local = (local >= 0) & (local < n_local)
    return local.masked_fill(~is_local, 0), is_local


def operator_weight(
    logits: Tensor, target: Tensor, weight: Tensor | None, with_smoothing: bool
) -> Tensor | None:
    """The class weights that the row operators take."""
    if with_smoothing and weight is None:
        return logits.new_ones(logits.shape[-1], dtype=compute_dtype(logits.dtype))
    return weight if with_smoothing or target.is_floating_point() else None


def row_needs(
    target: Tensor, weight: Tensor | None, with_smoothing: bool, with_entropy: bool
) -> RowNeeds:
    """What the loss needs of each rank."""
    has_row_weight = weight is not None and not target.is_floating_point()
    return RowNeeds(has_row_weight, with_smoothing, with_entropy)


def packed_outputs(
    row_forward: Any,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    first_class: int,
    with_smoothing: bool,
    with_entropy: bool,
) -> Tensor:
    """What ``row_forward(target, class_weight)`` computes of the rank's logits, in one vector."""
    n_local = logits.shape[-1]
    needs = row_needs(target, weight, with_smoothing, with_entropy)
    class_weight = operator_weight(logits, target, weight, with_smoothing)
    local, is_local, row_weight = target, None, None
    if not target.is_floating_point():
        local, is_local = local_target(target, first_class, n_local)
    rows = row_forward(local, class_weight) if n_local else _rows_without_classes(logits)
    if weight is not None and is_local is not None:
        row_weight = weight[local] if n_local else torch.zeros_like(rows[0])
        row_weight = row_weight.masked_fill(~is_local, 0)
    return packed_rows(
        RowOutputs(*rows), needs, is_local, row_weight, class_weight, first_class, n_local
    )


def _rows_without_classes(logits: Tensor) -> RowOutputs:
    zeros = logits.new_zeros(logits.shape[:-1], dtype=compute_dtype(logits.dtype))
    lse = torch.full_like(zeros, -torch.inf)
    stats = torch.stack([zeros, lse], -1)
    return RowOutputs(zeros, zeros, zeros, lse, zeros, zeros.long(), stats)


def _forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    first_class: int,
    with_smoothing: bool,
    with_entropy: bool,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    def row_forward(local: Tensor, class_weight: Tensor | None) -> Any:
        return cross_entropy_forward(
            logits, local, class_weight, logit_scale, softcap, with_entropy
        )

    args = (target, weight, first_class, with_smoothing, with_entropy)
    return packed_outputs(row_forward, logits, *args)


def empty_packed(
    logits: Tensor, target: Tensor, weight: Tensor | None, with_smoothing: bool, with_entropy: bool
) -> Tensor:
    """An uninitialized result of :func:`packed_outputs`."""
    columns = sum(row_needs(target, weight, with_smoothing, with_entropy).enabled())
    for size in logits.shape[:-1]:
        columns = columns * size
    return logits.new_empty(HEADER_LENGTH + columns, dtype=compute_dtype(logits.dtype))


def _backward_arguments(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    first_class: int,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    *others: Any,
) -> tuple[Any, ...]:
    class_weight = operator_weight(logits, target, weight, s is not None)
    if not target.is_floating_point():
        target, is_local = local_target(target, first_class, logits.shape[-1])
        # another rank subtracts the one-hot
        b = b.masked_fill(~is_local, 0)
    return target, class_weight, softmax_stats, a, b, s, *others


def differentiable_shard_backward(logits: Tensor, *args: Any) -> Tensor:
    """The gradient that :data:`shard_backward` computes, in PyTorch's operators."""
    if logits.shape[-1] == 0:
        # a rank without classes takes part in the sums of the others
        return logits * sum(x.sum() for x in args[3:8] if x is not None)
    return reference.cross_entropy_backward(logits, *_backward_arguments(logits, *args))


def _backward(logits: Tensor, *args: Any) -> Tensor:
    if not logits.numel():
        return torch.empty_like(logits)
    dlogits: Tensor = cross_entropy_backward(logits, *_backward_arguments(logits, *args))
    return dlogits


def _backward_inplace(logits: Tensor, *args: Any) -> None:
    if logits.numel():
        cross_entropy_backward_inplace(logits, *_backward_arguments(logits, *args))


_BACKWARD_ARGUMENTS = (
    " Tensor target, Tensor? weight, SymInt first_class, Tensor softmax_stats, Tensor a,"
    " Tensor b, Tensor? s, Tensor? e, float logit_scale, float? softcap"
)
shard_forward = register_composed(
    "vocab_shard_forward(Tensor logits, Tensor target, Tensor? weight, SymInt first_class,"
    " bool with_smoothing, bool with_entropy, float logit_scale, float? softcap) -> Tensor",
    _forward,
    lambda logits, target, weight, _, with_smoothing, with_entropy, *__: empty_packed(
        logits, target, weight, with_smoothing, with_entropy
    ),
)
shard_backward = register_composed(
    f"vocab_shard_backward(Tensor logits,{_BACKWARD_ARGUMENTS}) -> Tensor",
    _backward,
    lambda logits, *_: torch.empty_like(logits),
)
shard_backward_inplace = register_composed(
    f"vocab_shard_backward_inplace(Tensor(a!) logits,{_BACKWARD_ARGUMENTS}) -> ()",
    _backward_inplace,
    lambda logits, *_: None,
)
