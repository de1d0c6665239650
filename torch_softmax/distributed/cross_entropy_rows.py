"""Class-sharded cross-entropy of each row, differentiable."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import reference
from torch_softmax.distributed.class_shard import ClassShard
from torch_softmax.distributed.derivatives import (
    check_single_gradient,
    without_second_derivatives,
)
from torch_softmax.distributed.gathered_rows import coefficients, gather_shards, valid_classes
from torch_softmax.distributed.shard_operators import (
    row_needs,
    shard_backward,
    shard_backward_inplace,
    shard_forward,
)
from torch_softmax.distributed.shard_rows import GlobalRows, global_rows


class RowOptions(NamedTuple):
    """What shapes the rows of logits; ``function`` is the name in errors."""

    function: str
    with_smoothing: bool
    with_entropy: bool
    logit_scale: float
    softcap: float | None
    inplace: bool


def vocab_parallel_rows(
    logits: Tensor, target: Tensor, weight: Tensor | None, shard: ClassShard, options: RowOptions
) -> tuple[GlobalRows, ClassShard]:
    """Losses and statistics of rows over all classes, with one gather."""

    def forward(first_class: int) -> Tensor:
        packed: Tensor = shard_forward(logits, target, weight, first_class, *options[1:5])
        return packed

    with torch.no_grad():
        gathered, shard = gather_shards(options.function, forward, shard, target)
    rows = VocabParallelRowsFunction.apply(
        logits, target, weight, gathered, shard.first_class, shard.num_classes, options
    )
    return GlobalRows(*rows), shard


class VocabParallelRowsFunction(Function):
    """Losses and statistics of rows, a function of this rank's logits and of the gathered rows."""

    # no setup_context: PyTorch would inspect signatures at each call, which costs 25 us
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        gathered: Tensor,
        first_class: int,
        num_classes: int,
        options: RowOptions,
    ) -> tuple[Tensor, ...]:
        needs = row_needs(target, weight, options.with_smoothing, options.with_entropy)
        is_class = valid_classes(target, num_classes)
        rows = global_rows(gathered, needs, logits.shape[:-1], is_class)
        ctx.first_class, ctx.options, ctx.needs = first_class, options, needs
        ctx.mark_non_differentiable(
            rows.prediction, rows.target_weight, rows.softmax_stats, rows.weight_sum
        )
        # an unused output has gradient None, and backward leaves out its term
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, *rows)
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        options, needs = ctx.options, ctx.needs
        check_single_gradient(options.function, *gradients)
        logits, target, weight, *saved = ctx.saved_tensors
        rows = GlobalRows(*saved)
        dnll, dsmooth, drow_weight, dlse, dentropy = gradients[:5]
        # while tracing, torch.compile passes zeros for unused outputs, even for empty ones
        dsmooth = dsmooth if needs.smooth else None
        drow_weight = drow_weight if needs.row_weight else None
        dentropy = dentropy if needs.entropy else None
        with torch.no_grad():
            dlogits = dtarget = dweight = None
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                cost = _cost(logits, rows, options)
                inputs = (target, weight, ctx.first_class)
                dtarget, dweight = _gradients_of_weights(cost, *inputs, dnll, dsmooth, drow_weight)
            if ctx.needs_input_grad[0]:
                factors = coefficients(rows, dnll, dsmooth, dlse, dentropy)
                backward = _overwrite if options.inplace else shard_backward
                dlogits = backward(
                    logits,
                    *(target, weight, ctx.first_class, rows.softmax_stats),
                    *(*factors, options.logit_scale, options.softcap),
                )
        inputs = (dlogits, dtarget, dweight)
        return (*without_second_derivatives(options.function, inputs), *[None] * 4)


def _overwrite(logits: Tensor, *args: Any) -> Tensor:
    shard_backward_inplace(logits, *args)
    # functions that saved the logits must raise in backward, as after any in-place operation
    torch.autograd.graph.increment_version(logits)
    return logits.detach()


def _cost(logits: Tensor, rows: GlobalRows, options: RowOptions) -> Tensor:
    """-log(p) of this rank's classes, finite."""
    x = reference.apply_softcap(logits, options.logit_scale, options.softcap)
    row_max, log_sum_exp = rows.softmax_stats.unsqueeze(-1).unbind(-2)
    cost = (row_max - x) + log_sum_exp
    # 0 * inf would be NaN
    return cost.clamp(max=torch.finfo(cost.dtype).max)


def _gradients_of_weights(
    cost: Tensor,
    target: Tensor,
    weight: Tensor | None,
    first_class: int,
    dnll: Tensor | None,
    dsmooth: Tensor | None,
    drow_weight: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of target probabilities and class weights; too rare for a kernel."""
    dtarget = None
    dweight = cost.new_zeros(cost.shape[-1])
    if target.is_floating_point() and dnll is not None:
        dweights = dnll.unsqueeze(-1) * cost
        dtarget = (dweights if weight is None else dweights * weight).to(target.dtype)
        dweight = dweight + _sum_over_rows(dweights * target)
    if dsmooth is not None:
        dweight = dweight + _sum_over_rows(dsmooth.unsqueeze(-1) * cost)
    if drow_weight is not None:
        classes = torch.arange(cost.shape[-1], device=cost.device) + first_class
        is_target = target.unsqueeze(-1) == classes
        dweight = dweight + _sum_over_rows(torch.where(is_target, drow_weight.unsqueeze(-1), 0))
    return dtarget, None if weight is None else dweight.to(weight.dtype)


def _sum_over_rows(x: Tensor) -> Tensor:
    return x.sum(tuple(range(x.dim() - 1))) if x.dim() > 1 else x
