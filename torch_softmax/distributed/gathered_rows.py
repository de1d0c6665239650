"""One gather of what each rank knows of its rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_softmax.distributed.class_shard import ClassShard, checked_shard
from torch_softmax.distributed.collectives import all_gather
from torch_softmax.distributed.shard_rows import layout_of_ranks


def gather_shards(
    function: str, forward: Callable[[int], Tensor], shard: ClassShard, target: Tensor
) -> tuple[Tensor, ClassShard]:
    """The packed rows of all ranks, shape (ranks, length), and the shard with all its numbers.

    ``forward(first_class)`` packs the rows of this rank.
    """
    gathered = all_gather(forward(shard.first_class), shard.group)
    if shard.num_classes is None:
        shard, is_right = checked_shard(shard, layout_of_ranks(gathered))
        if not is_right:
            # all ranks read the same layout, so all of them gather again
            gathered = all_gather(forward(shard.first_class), shard.group)
    _check_classes(function, target, shard)
    return gathered, shard


def valid_classes(target: Tensor, num_classes: Any) -> Tensor | None:
    """Mask of the rows whose target is a class; None for probabilities."""
    return None if target.is_floating_point() else (target >= 0) & (target < num_classes)


def _check_classes(function: str, target: Tensor, shard: ClassShard) -> None:
    """Raise IndexError for an invalid class on the CPU; on a GPU the check would stop the stream.

    After the gather: all ranks have the same targets, and none waits for one that raised.
    """
    is_class = valid_classes(target, shard.num_classes)
    if is_class is None or target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not is_class.all():
        raise IndexError(
            f"{function} needs target in [0, {shard.num_classes}) or equal to ignore_index, "
            f"got {target[~is_class][0].item()}"
        )
