"""Class-sharded linear cross-entropy of each row, differentiable, in chunks.

The backward pass computes the logits of each chunk again: their gradient depends on the statistics
of all ranks, and these are known after the last chunk of the forward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

from torch_softmax._ops import LinearHead
from torch_softmax._ops.linear_chunks import zero_rows
from torch_softmax._ops.linear_rows import dense_logits, losses_per_row, rows_of
from torch_softmax.distributed.class_shard import ClassShard
from torch_softmax.distributed.collectives import (
    start_all_reduce,
    summed_over_ranks,
    wait,
    with_summed_gradient,
)
from torch_softmax.distributed.gathered_rows import gather_shards, valid_classes
from torch_softmax.distributed.linear_shard_operators import (
    HeadOptions,
    linear_shard_backward,
    linear_shard_backward_head,
    linear_shard_backward_input,
    linear_shard_forward,
)
from torch_softmax.distributed.row_gradients import (
    as_row_gradients,
    coefficients,
    for_own_classes,
)
from torch_softmax.distributed.shard_operators import differentiable_shard_backward, row_needs
from torch_softmax.distributed.shard_rows import GlobalRows, global_rows


def vocab_parallel_linear_rows(
    function: str,
    head: LinearHead,
    target: Tensor,
    weight: Tensor | None,
    ignored: Tensor | None,
    shard: ClassShard,
    options: HeadOptions,
    with_smoothing: bool,
) -> tuple[GlobalRows, ClassShard]:
    """Losses of rows over all classes, with one gather."""
    tensors = (head.x, head.weight, head.bias, target, weight, ignored)

    def forward(first_class: int) -> Tensor:
        packed: Tensor = linear_shard_forward(*tensors, first_class, *options, with_smoothing)
        return packed

    with torch.no_grad():
        gathered, shard = gather_shards(function, forward, shard, target)
    rows = VocabParallelLinearRowsFunction.apply(
        *(*tensors, gathered, shard.group, shard.first_class, shard.num_classes),
        *(options, with_smoothing, function),
    )
    return GlobalRows(*rows), shard


class VocabParallelLinearRowsFunction(Function):
    """Losses of rows, a function of this rank's head and of the gathered rows."""

    # no setup_context: PyTorch would inspect signatures at each call, which costs 25 us
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        ignored: Tensor | None,
        gathered: Tensor,
        group: ProcessGroup,
        first_class: int,
        num_classes: int,
        options: HeadOptions,
        with_smoothing: bool,
        function: str,
    ) -> tuple[Tensor, ...]:
        needs = row_needs(target, weight, with_smoothing, False)
        is_class = valid_classes(target, num_classes)
        # class indices have the shape of the losses, probabilities one axis more
        batch = target.shape[:-1] if is_class is None else target.shape
        rows = global_rows(gathered, needs, batch, is_class)
        ctx.group, ctx.first_class, ctx.options = group, first_class, options
        ctx.needs, ctx.function = needs, function
        constant = (rows.row_weight, rows.entropy, rows.prediction, rows.target_weight)
        ctx.mark_non_differentiable(*constant, rows.softmax_stats, rows.weight_sum)
        # an unused output has gradient None, and backward leaves out its term
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, linear_weight, linear_bias, target, weight, ignored, *rows)
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, rows = ctx.saved_tensors[:6], GlobalRows(*ctx.saved_tensors[6:])
        is_probability = tensors[3].is_floating_point()
        of_rows = as_row_gradients(ctx.function, gradients, ctx.needs, is_probability)
        needed = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            rows, of_rows = for_own_classes(rows, of_rows, ctx.group)
            factors = (rows.softmax_stats, *coefficients(rows, of_rows))
            args = (ctx.first_class, factors, ctx.options)
            head_gradients = _differentiable_head_gradients(ctx.group, tensors, *args)
        else:
            a, b, s, _ = coefficients(rows, of_rows)
            rest = (*ctx.options, rows.softmax_stats, a, b, s, needed)
            head_gradients = _head_gradients(ctx.group, (*tensors, ctx.first_class, *rest), needed)
        pairs = zip(head_gradients, needed, strict=True)
        results: tuple[Any, ...] = tuple(y if is_needed else None for y, is_needed in pairs)
        return (*results, *[None] * 10)


def _differentiable_head_gradients(
    group: ProcessGroup,
    tensors: tuple[Any, ...],
    first_class: int,
    factors: tuple[Any, ...],
    options: HeadOptions,
) -> tuple[Tensor, ...]:
    """The same as :func:`_head_gradients`, in PyTorch's operators, with all logits of the rank."""
    x, linear_weight, bias, target, weight, ignored = tensors
    # each rank multiplies x with its own weight, and its own gradient with x
    x = zero_rows(with_summed_gradient(x, group), rows_of(ignored))
    rows = dense_logits(LinearHead(x, linear_weight, bias, options.logits_dtype), target, None)
    scaling = (options.logit_scale, options.softcap)
    dlogits = differentiable_shard_backward(
        rows, target, weight, first_class, *factors, *scaling
    ).to(x.dtype)
    if losses_per_row(target):
        dlogits = dlogits.transpose(1, 2).flatten(1)
    dx = summed_over_ranks(dlogits @ linear_weight, group)
    return dx, dlogits.t() @ x, dlogits.sum(0)


def _head_gradients(
    group: ProcessGroup, args: tuple[Any, ...], needed: list[bool]
) -> tuple[Tensor, ...]:
    """The gradients of x, summed over the ranks, of this rank's weight and of its bias."""
    if torch.compiler.is_compiling():
        gradients = linear_shard_backward(*args)
        dx = start_all_reduce(gradients[0], group) if needed[0] else gradients[0]
    else:
        dx, weight_sum, bias_sum, *last = linear_shard_backward_input(*args)
        dx = start_all_reduce(dx, group) if needed[0] else dx
        # beside the sum over the ranks
        linear_shard_backward_head(*last, weight_sum, bias_sum, needed)
        dtype = args[1].dtype
        gradients = (dx, weight_sum.to(dtype), bias_sum.to(dtype))
    return (wait(dx) if needed[0] else dx, *gradients[1:])
