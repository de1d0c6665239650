"""Softmax and log-softmax of a DTensor, also along an axis that is sharded."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

from torch_softmax import _ops, reference
from torch_softmax._layout import compute_dtype
from torch_softmax.distributed.collectives import (
    all_gather,
    summed_over_ranks,
    with_summed_gradient,
)
from torch_softmax.distributed.dtensor import as_dtensor, local_tensor, sharding_of

# PyTorch 2.11 returns a gradient of 0, 2.14 the right one; 2.12 and 2.13 were not tried
_COMPILES_GRADIENTS = torch.__version__ >= "2.14"


def dtensor_softmax(function: str, input: Any, dim: int, dtype: torch.dtype) -> Tensor:
    """Softmax or log-softmax, as ``function`` says, with the placements of ``input``.

    Along an axis that is sharded, a gather of two numbers per row replaces the whole rows, and a
    sum of one number per row their gradients.
    """
    dim = dim % max(input.dim(), 1)
    sharding = sharding_of(function, input, dim)
    x, is_log = local_tensor(input), function == "log_softmax"
    group = sharding.group_of(dim)
    if group is not None:
        if torch.compiler.is_compiling() and not _COMPILES_GRADIENTS:
            raise RuntimeError(
                f"{function} needs PyTorch 2.14 or later for a compiled softmax along a sharded "
                f"axis, got {torch.__version__}, which loses its gradient"
            )
        y = _ShardedSoftmaxFunction.apply(x, dim, dtype, is_log, group)
    else:
        y = (_ops.log_softmax if is_log else _ops.softmax)(x, dim, dtype)
    return as_dtensor(y, sharding, input.placements, input.shape)


class _ShardedSoftmaxFunction(Function):
    """Softmax or log-softmax along an axis of which each rank has a part."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, dtype: torch.dtype, is_log: bool, group: ProcessGroup
    ) -> Tensor:
        ctx.dim, ctx.x_dtype, ctx.is_log, ctx.group = dim, x.dtype, is_log, group
        x = x.to(torch.promote_types(compute_dtype(x.dtype), compute_dtype(dtype))).movedim(dim, -1)
        row_max, log_sum_exp = all_gather(reference.row_softmax_stats(x), group).unbind(-1)
        # a part of -inf, or without classes, has row_max 0
        row_max = row_max.masked_fill(log_sum_exp == -torch.inf, -torch.inf)
        largest = row_max.amax(0)
        largest = largest.masked_fill(largest == -torch.inf, 0)
        total = (row_max - largest + log_sum_exp).exp().sum(0).log()
        y = (x - largest.unsqueeze(-1)) - total.unsqueeze(-1)
        y = (y if is_log else y.exp()).movedim(-1, dim).contiguous().to(dtype)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        y, dy = (x.to(compute_dtype(x.dtype)) for x in (y, dy))
        total = (dy if ctx.is_log else y * dy).sum(ctx.dim, keepdim=True)
        # each rank goes on with the total and its own part of y, which a second derivative sums
        total = with_summed_gradient(summed_over_ranks(total, ctx.group), ctx.group)
        dx = dy - y.exp() * total if ctx.is_log else y * (dy - total)
        return dx.to(ctx.x_dtype), None, None, None, None
