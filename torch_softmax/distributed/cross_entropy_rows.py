"""Class-sharded cross-entropy of each row, differentiable."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

from torch_softmax import reference
from torch_softmax._ops.donation import overwritten
from torch_softmax.distributed.class_shard import ClassShard
from torch_softmax.distributed.gathered_rows import gather_shards, valid_classes
from torch_softmax.distributed.row_gradients import (
    as_row_gradients,
    coefficients,
    for_own_classes,
    gradients_of_weights,
    without_unused_rows,
)
from torch_softmax.distributed.shard_operators import (
    differentiable_shard_backward,
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
        *(logits, target, weight, gathered),
        *(shard.group, shard.first_class, shard.num_classes, options),
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
        group: ProcessGroup,
        first_class: int,
        num_classes: int,
        options: RowOptions,
    ) -> tuple[Tensor, ...]:
        needs = row_needs(target, weight, options.with_smoothing, options.with_entropy)
        is_class = valid_classes(target, num_classes)
        rows = global_rows(gathered, needs, logits.shape[:-1], is_class)
        ctx.first_class, ctx.options, ctx.needs = first_class, options, needs
        ctx.group = group
        ctx.mark_non_differentiable(rows.prediction, rows.softmax_stats)
        # an unused output has gradient None, and backward leaves out its term
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, *rows)
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        options = ctx.options
        logits, target, weight, *saved = ctx.saved_tensors
        rows = GlobalRows(*saved)
        is_probability = target.is_floating_point()
        of_rows = as_row_gradients(options.function, gradients, ctx.needs, is_probability)
        backward = _overwrite if options.inplace else shard_backward
        if torch.is_grad_enabled():
            if options.inplace:
                raise RuntimeError(
                    f"{options.function} needs inplace=False for second derivatives, got True"
                )
            logits, rows = without_unused_rows(logits, rows, of_rows)
            rows, of_rows = for_own_classes(rows, of_rows, ctx.group)
            backward = differentiable_shard_backward
        dlogits = dtarget = dweight = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            cost = _cost(*without_unused_rows(logits, rows, of_rows), options)
            dtarget, dweight = gradients_of_weights(cost, target, weight, ctx.first_class, of_rows)
        if ctx.needs_input_grad[0]:
            dlogits = backward(
                *(logits, target, weight, ctx.first_class, rows.softmax_stats),
                *(*coefficients(rows, of_rows), options.logit_scale, options.softcap),
            )
        return dlogits, dtarget, dweight, *[None] * 5


def _overwrite(logits: Tensor, *args: Any) -> Tensor:
    shard_backward_inplace(logits, *args)
    return overwritten(logits)


def _cost(logits: Tensor, rows: GlobalRows, options: RowOptions) -> Tensor:
    """-log(p) of this rank's classes, finite."""
    x = reference.apply_softcap(logits, options.logit_scale, options.softcap)
    row_max, log_sum_exp = rows.softmax_stats.unsqueeze(-1).unbind(-2)
    cost = (row_max - x) + log_sum_exp
    # 0 * inf would be NaN
    return cost.clamp(max=torch.finfo(cost.dtype).max)
