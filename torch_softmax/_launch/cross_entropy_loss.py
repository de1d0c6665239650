"""Launchers of the losses of rows, reduced or not, and of their gradient."""

from typing import Any

import torch
from torch import Tensor

from torch_softmax._launch import clusters
from torch_softmax._launch.loss_plan import LossPlan
from torch_softmax._launch.schedule import MAX_SCHEDULES, layout
from torch_softmax._layout import collapse_batch_dims, compute_dtype, empty_rows_like
from torch_softmax._options import LossOptions

_plans: dict[tuple[Any, ...], LossPlan] = {}


def launch_cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    denominator: Tensor | None = None,
    dtype: torch.dtype | None = None,
    with_gradient: bool = True,
    *options: Any,
    dloss: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The losses in ``dtype``, reduced, and their gradient or an empty tensor."""
    dlogits = empty_rows_like(logits) if with_gradient else None
    loss = _launch_into(dlogits, logits, target, weight, denominator, dloss, dtype, options)
    return loss, logits.new_empty(0) if dlogits is None else dlogits


def launch_cross_entropy_loss_inplace(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    denominator: Tensor | None = None,
    dtype: torch.dtype | None = None,
    *options: Any,
    dloss: Tensor | None = None,
) -> Tensor:
    """The losses in ``dtype``, reduced; their gradient overwrites the logits."""
    return _launch_into(logits, logits, target, weight, denominator, dloss, dtype, options)


def _launch_into(
    dlogits: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    dloss: Tensor | None,
    dtype: torch.dtype | None,
    options: tuple[Any, ...],
) -> Tensor:
    """Launch the kernels; the gradient goes to ``dlogits``, which may be ``logits``."""
    dtype = dtype or logits.dtype
    if logits.numel() == 0:
        return _loss_of_no_rows(logits, denominator, LossOptions(*options).reduction, dtype)
    target = _with_layout(target, logits)
    weight = None if weight is None else weight.contiguous()
    if dloss is not None and any(dloss.stride()):
        dloss = dloss.contiguous()
    tensors = (logits, target, weight, denominator, dloss, dlogits)
    key = (
        options,
        clusters.enabled,
        dtype,
        logits.device,
        layout(logits),
        layout(target),
        None if weight is None else layout(weight),
        None if denominator is None else layout(denominator),
        None if dloss is None else layout(dloss),
        None if dlogits is None else layout(dlogits),
    )
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) == MAX_SCHEDULES:
            _plans.clear()
        plan = _plans[key] = LossPlan(*tensors, LossOptions(*options))
    loss = logits.new_empty(logits.shape[:-1] if plan.has_rows else (), dtype=dtype)
    plan.launch(loss, *tensors)
    return loss


def _with_layout(target: Tensor, logits: Tensor) -> Tensor:
    """Contiguous indices, or probabilities whose batch dims collapse as those of logits do."""
    if not target.is_floating_point():
        return target.contiguous()
    if logits.dim() <= 2:
        return target
    return target.reshape(*(collapse_batch_dims(logits) or (1, -1)), logits.shape[-1])


def _loss_of_no_rows(
    logits: Tensor, denominator: Tensor | None, reduction: str, dtype: torch.dtype
) -> Tensor:
    """0 / denominator: NaN for the default denominator of a mean, which is 0."""
    shape = logits.shape[:-1] if reduction == "none" else ()
    loss = torch.zeros(shape, dtype=compute_dtype(logits.dtype), device=logits.device)
    if denominator is not None:
        loss = loss / denominator
    elif reduction == "mean":
        loss = loss / 0
    return loss.to(dtype)
