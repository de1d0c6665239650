"""The collectives of the class-sharded forms, which torch.compile and CommDebugMode see."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

# the operators below PyTorch's functional collectives, whose Python names change between versions
_functional = torch.ops._c10d_functional


def as_group(function: str, group: ProcessGroup | None) -> ProcessGroup:
    """``group``, or the default group for None."""
    if group is None:
        if not dist.is_initialized():
            raise RuntimeError(f"{function} needs torch.distributed.init_process_group first")
        group = dist.group.WORLD
    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"{function} needs group to be a ProcessGroup that this rank belongs to, or None, "
            f"got {group!r}"
        )
    return group


def all_gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """``x`` of every rank, in rank order along a new first axis."""
    n_ranks = dist.get_world_size(group)
    gathered = _functional.all_gather_into_tensor(x.contiguous(), n_ranks, group.group_name)
    return wait(gathered).view(n_ranks, *x.shape)


def start_all_reduce(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of ``x`` over the ranks, to be passed to :func:`wait` before it is read."""
    total: Tensor = _functional.all_reduce(x.contiguous(), "sum", group.group_name)
    return total


def wait(x: Tensor) -> Tensor:
    """``x`` when its collective has ended."""
    ended: Tensor = _functional.wait_tensor(x)
    return ended


def with_summed_gradient(x: Tensor, group: ProcessGroup) -> Tensor:
    """``x``, the same on all ranks, for uses that differ; its gradient is their sum."""
    y: Tensor = _Copy.apply(x, group)
    return y


def summed_over_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of ``x`` over the ranks, for uses that are the same on all of them."""
    y: Tensor = _Sum.apply(x, group)
    return y


# the backward of each is the other, to any order


class _Copy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return summed_over_ranks(dy, ctx.group), None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return wait(start_all_reduce(x, group))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return with_summed_gradient(dy, ctx.group), None
