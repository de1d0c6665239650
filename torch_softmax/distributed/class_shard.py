"""Which classes a rank holds.

By default the layout is that of ``torch.chunk`` and of DTensor's ``Shard``: each rank holds
ceil(classes / ranks) classes, the last ones fewer or none.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from torch_softmax.functional.checks import ArgumentValueError, as_int

# the first class of a rank, by group and number of classes, as the last gather told it: a guess
# that each call checks, so an old one costs a second gather and nothing else
_known_first_classes: dict[tuple[str, int], int] = {}


class ClassShard(NamedTuple):
    """The classes of this rank, from ``first_class`` on.

    ``num_classes`` counts those of all ranks; while it is None, ``first_class`` is a guess.
    """

    group: ProcessGroup
    first_class: int
    num_classes: int | None


def as_class_shard(
    function: str, group: ProcessGroup, n_local: int, num_classes: Any, class_offset: Any
) -> ClassShard:
    """The classes of this rank, which holds ``n_local`` of them."""
    rank = dist.get_rank(group)
    if num_classes is None:
        if class_offset is not None:
            raise ArgumentValueError(
                f"{function} needs num_classes beside class_offset, got None and {class_offset!r}"
            )
        if torch.compiler.is_compiling():
            raise ArgumentValueError(f"{function} needs num_classes under torch.compile, got None")
        guess = _known_first_classes.get((group.group_name, n_local), rank * n_local)
        return ClassShard(group, guess, None)
    num_classes = as_int(function, "num_classes", num_classes)
    if num_classes < 1:
        raise ArgumentValueError(f"{function} needs num_classes of at least 1, got {num_classes}")
    if class_offset is None:
        return _chunk(function, group, n_local, num_classes)
    first = class_offset
    # one program that runs several ranks has one number for all of them
    if not isinstance(first, torch.SymInt):
        first = as_int(function, "class_offset", class_offset)
    if first < 0 or first + n_local > num_classes:
        raise ArgumentValueError(
            f"{function} needs class_offset in [0, {num_classes - n_local}] for {n_local} of "
            f"{num_classes} classes, got {first}"
        )
    return ClassShard(group, first, num_classes)


def _chunk(function: str, group: ProcessGroup, n_local: int, num_classes: int) -> ClassShard:
    rank, n_ranks = dist.get_rank(group), dist.get_world_size(group)
    size = -(-num_classes // n_ranks)
    # one program that runs several ranks has one torch.SymInt for all of them; torch.compile of
    # PyTorch 2.11 traces sym_min of no int
    smaller: Any = torch.sym_min if isinstance(rank, torch.SymInt) else min
    first = smaller(rank * size, num_classes)
    last = smaller(first + size, num_classes)
    if n_local != last - first:
        raise ArgumentValueError(
            f"{function} needs {last - first} classes on rank {rank} of {n_ranks}, its chunk of "
            f"{num_classes} classes, or class_offset, got {n_local} classes"
        )
    return ClassShard(group, first, num_classes)


def checked_shard(shard: ClassShard, layout: Tensor) -> tuple[ClassShard, bool]:
    """The shard with what all ranks say, and whether all of them had guessed right.

    ``layout`` holds the number of classes and the first class of every rank.
    """
    counts, guesses = zip(*layout.tolist(), strict=True)
    firsts = [sum(counts[:rank]) for rank in range(len(counts))]
    rank = dist.get_rank(shard.group)
    is_right = all(
        not count or guess == first
        for count, guess, first in zip(counts, guesses, firsts, strict=True)
    )
    _known_first_classes[shard.group.group_name, counts[rank]] = firsts[rank]
    return ClassShard(shard.group, firsts[rank], sum(counts)), is_right
