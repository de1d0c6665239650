"""Gradients of the rows over all classes, and what they are for the classes of one rank.

The incoming gradients and the statistics of rows are the same on all ranks, but each rank forms the
gradient of its own classes from them. In a second derivative, the gradients of both are therefore
summed over the ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from torch_softmax._ops.cross_entropy import sum_over_rows
from torch_softmax._ops.registration import is_batched
from torch_softmax.distributed.collectives import with_summed_gradient
from torch_softmax.distributed.shard_rows import GlobalRows, RowNeeds


class RowGradients(NamedTuple):
    """Incoming gradients of the fields of :class:`GlobalRows`; None for unused ones."""

    nll: Tensor | None
    smooth: Tensor | None
    row_weight: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None
    target_weight: Tensor | None
    weight_sum: Tensor | None


def as_row_gradients(
    function: str,
    gradients: tuple[Tensor | None, ...],
    needs: RowNeeds,
    is_probability: bool,
) -> RowGradients:
    """The gradients by name; raise RuntimeError for a batch of gradients in one backward."""
    if any(map(is_batched, gradients)):
        raise RuntimeError(f"{function} needs one backward per gradient, got is_grads_batched=True")
    by_name = dict(zip(GlobalRows._fields, gradients, strict=True))
    # while tracing, torch.compile passes zeros for unused outputs, even for empty ones
    is_used = {
        "smooth": needs.smooth,
        "row_weight": needs.row_weight,
        "entropy": needs.entropy,
        "target_weight": is_probability,
        "weight_sum": needs.smooth,
    }
    return RowGradients(
        *(by_name[name] if is_used.get(name, True) else None for name in RowGradients._fields)
    )


def without_unused_rows(
    logits: Tensor, rows: GlobalRows, gradients: RowGradients
) -> tuple[Tensor, GlobalRows]:
    """Both with 0 in rows that are not finite and whose gradients are 0, as ignored rows are.

    Their gradient is 0, but in the gradient of class weights and in second derivatives 0 times
    their NaN would be NaN.
    """
    is_unused = ~rows.lse.isfinite()
    for gradient in gradients:
        if gradient is not None and gradient.shape == is_unused.shape:
            is_unused = is_unused & (gradient == 0)
    mask = is_unused.unsqueeze(-1)
    entropy = rows.entropy
    if entropy.shape == is_unused.shape:
        entropy = entropy.masked_fill(is_unused, 0)
    rows = rows._replace(
        lse=rows.lse.masked_fill(is_unused, 0),
        softmax_stats=rows.softmax_stats.masked_fill(mask, 0),
        entropy=entropy,
    )
    return logits.masked_fill(mask, 0), rows


def for_own_classes(
    rows: GlobalRows, gradients: RowGradients, group: ProcessGroup
) -> tuple[GlobalRows, RowGradients]:
    """Both for the gradient of this rank's classes, with ``create_graph=True``."""
    lse = rows.lse
    named = {"lse": lse, "target_weight": rows.target_weight}
    if rows.entropy.shape == lse.shape:
        named["entropy"] = rows.entropy
    used = {
        f"d{name}": x
        for name, x in gradients._asdict().items()
        if x is not None and name != "weight_sum"
    }
    # one sum over the ranks for all vectors, one for the scalars
    columns = with_summed_gradient(torch.stack([*named.values(), *used.values()]), group)
    copies = dict(zip([*named, *used], columns.unbind(0), strict=True))
    scalars = [x for x in (rows.weight_sum, gradients.weight_sum) if x is not None]
    weight_sum, *dweight_sum = with_summed_gradient(torch.stack(scalars), group).unbind(0)
    row_max = rows.softmax_stats[..., 0]
    stats = torch.stack([row_max, copies["lse"] - row_max], -1)
    rows = rows._replace(
        softmax_stats=stats, weight_sum=weight_sum, **{name: copies[name] for name in named}
    )
    own = {name: copies.get(f"d{name}") for name in RowGradients._fields}
    own["weight_sum"] = dweight_sum[0] if dweight_sum else None
    return rows, RowGradients(**own)


def coefficients(
    rows: GlobalRows, gradients: RowGradients
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """``a``, ``b``, ``s`` and ``e`` of ``reference.cross_entropy_backward``."""
    b = torch.zeros_like(rows.lse) if gradients.nll is None else gradients.nll
    # NaN for a target that is no class
    a = b * rows.target_weight
    if gradients.smooth is not None:
        a = a + gradients.smooth * rows.weight_sum
    if gradients.lse is not None:
        a = a + gradients.lse
    if gradients.entropy is not None:
        a = a - gradients.entropy * rows.entropy
    return a, b, gradients.smooth, gradients.entropy


def gradients_of_weights(
    cost: Tensor,
    target: Tensor,
    weight: Tensor | None,
    first_class: int,
    gradients: RowGradients,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of target probabilities and class weights; too rare for a kernel.

    ``cost`` holds lse - logits for the classes of this rank.
    """
    dtarget, dweight = None, cost.new_zeros(cost.shape[-1])
    if target.is_floating_point():
        dweights = torch.zeros_like(cost)
        if gradients.nll is not None:
            dweights = dweights + gradients.nll.unsqueeze(-1) * cost
        if gradients.target_weight is not None:
            dweights = dweights + gradients.target_weight.unsqueeze(-1)
        dtarget = (dweights if weight is None else dweights * weight).to(target.dtype)
        dweight = dweight + sum_over_rows(dweights * target)
    if gradients.smooth is not None:
        dweight = dweight + sum_over_rows(gradients.smooth.unsqueeze(-1) * cost)
    if gradients.weight_sum is not None:
        dweight = dweight + gradients.weight_sum
    if gradients.row_weight is not None:
        classes = torch.arange(cost.shape[-1], device=cost.device) + first_class
        is_target = target.unsqueeze(-1) == classes
        of_rows = torch.where(is_target, gradients.row_weight.unsqueeze(-1), 0)
        dweight = dweight + sum_over_rows(of_rows)
    return dtarget, None if weight is None else dweight.to(weight.dtype)
