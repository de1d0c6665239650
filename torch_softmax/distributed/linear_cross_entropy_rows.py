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
from torch_softmax.distributed.class_shard import ClassShard
from torch_softmax.distributed.collectives import start_all_reduce, wait
from torch_softmax.distributed.derivatives import (
    check_single_gradient,
    without_second_derivatives,
)
from torch_softmax.distributed.gathered_rows import coefficients, gather_shards, valid_classes
from torch_softmax.distributed.linear_shard_operators import (
    HeadOptions,
    linear_shard_backward,
    linear_shard_backward_head,
    linear_shard_backward_input,
    linear_shard_forward,
)
from torch_softmax.distributed.shard_operators import row_needs
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
        not_differentiable = (rows.row_weight, rows.entropy, rows.prediction, rows.target_weight)
        ctx.mark_non_differentiable(*not_differentiable, rows.softmax_stats, rows.weight_sum)
        # an unused output has gradient None, and backward leaves out its term
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, linear_weight, linear_bias, target, weight, ignored, *rows)
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        check_single_gradient(ctx.function, *gradients)
        tensors, rows = ctx.saved_tensors[:6], GlobalRows(*ctx.saved_tensors[6:])
        dnll, dsmooth, _, dlse = gradients[:4]
        # while tracing, torch.compile passes zeros for unused outputs, even for empty ones
        dsmooth = dsmooth if ctx.needs.smooth else None
        needed = list(ctx.needs_input_grad[:3])
        with torch.no_grad():
            a, b, s, _ = coefficients(rows, dnll, dsmooth, dlse, None)
            args = (*tensors, ctx.first_class, *ctx.options, rows.softmax_stats, a, b, s, needed)
            head_gradients = _head_gradients(ctx.group, args, needed)
        refused = without_second_derivatives(ctx.function, head_gradients)
        return (*refused, *[None] * 10)


def _head_gradients(
    group: ProcessGroup, args: tuple[Any, ...], needed: list[bool]
) -> tuple[Tensor | None, ...]:
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
    dx = wait(dx) if needed[0] else dx
    return tuple(
        y if is_needed else None for y, is_needed in zip((dx, *gradients[1:]), needed, strict=True)
    )
