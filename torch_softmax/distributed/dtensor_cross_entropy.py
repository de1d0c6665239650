"""Cross-entropy of logits in a DTensor, whose classes and rows may be sharded."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Partial, Replicate

from torch_softmax import _ops, reference
from torch_softmax._layout import RowOutputs, compute_dtype
from torch_softmax._options import LossOptions
from torch_softmax.distributed.class_shard import as_class_shard
from torch_softmax.distributed.collectives import summed_over_ranks
from torch_softmax.distributed.cross_entropy_rows import RowOptions, vocab_parallel_rows
from torch_softmax.distributed.derivatives import check_reverse_mode
from torch_softmax.distributed.dtensor import (
    Sharding,
    as_dtensor,
    local_tensor,
    matching,
    sharding_of,
)
from torch_softmax.distributed.loss import loss_of_rows, loss_terms
from torch_softmax.distributed.shard_rows import GlobalRows
from torch_softmax.functional.checks import (
    ArgumentValueError,
    as_denominator,
    check_cross_entropy_tensors,
    check_tensor,
)
from torch_softmax.functional.cross_entropy import class_axis_last, loss_dtype


def dtensor_cross_entropy(
    function: str,
    tensors: tuple[Tensor, Tensor, Tensor | None, float | Tensor | None],
    options: LossOptions,
    inplace: bool,
    with_entropy: bool,
) -> tuple[Tensor, ...]:
    """The loss of logits in a DTensor, and with entropy their lse, entropy and prediction.

    ``tensors`` are input, target, class weights and denominator. The mean is a copy on every rank,
    the sum of sharded rows is partial, and what each row has is sharded as the rows are.
    """
    input, target, weight, denominator = tensors
    if inplace:
        raise ArgumentValueError(f"{function} needs inplace=False for a DTensor, got True")
    check_tensor(function, "input", input)
    check_tensor(function, "target", target)
    class_axis = min(input.dim() - 1, 1)
    sharding = sharding_of(function, input, class_axis)
    check_cross_entropy_tensors(function, input, target, weight, options.ignore_index)
    if isinstance(denominator, DTensor):
        denominator = denominator.full_tensor()
    denominator = as_denominator(function, denominator, options.reduction, input)
    local = _local_tensors(function, input, target, weight, sharding, class_axis)
    num_classes = input.shape[class_axis]
    groups = sharding.groups_except(class_axis) if options.reduction == "mean" else []
    n_invalid = None
    if groups and _has_checked_classes(local[1]):
        # ranks hold different rows: all of them raise, and none waits for one that raised
        valid, n_invalid = _valid_classes(local[1], num_classes, options.ignore_index)
        local = (local[0], valid, local[2])
    group = sharding.group_of(class_axis)
    if group is None:
        result = _loss_of_rows(*local, options, with_entropy)
    else:
        result = _loss_of_shard(function, *local, group, num_classes, options, with_entropy)
    row_axes = _row_axes(input, class_axis)
    placements = sharding.placements(row_axes)
    row_shape = tuple(input.shape[i] for i in row_axes)
    statistics = []
    if with_entropy and result.rows is not None:
        of_rows = (result.rows.lse, result.rows.entropy, result.rows.prediction)
        statistics = [as_dtensor(y, sharding, placements, row_shape) for y in of_rows]
    loss, shape = result.loss, row_shape if options.reduction == "none" else ()
    if options.reduction == "sum":
        placements = tuple(Replicate() if p.is_replicate() else Partial() for p in placements)
    elif options.reduction == "mean":
        terms = (loss, result.denominator, denominator, n_invalid)
        loss = _global_mean(function, *terms, groups)
        placements = (Replicate(),) * len(placements)
    loss = as_dtensor(loss.to(loss_dtype(local[0])), sharding, placements, shape)
    return loss, *statistics


def _row_axes(input: Tensor, class_axis: int) -> dict[int, int]:
    """The axes of the rows, by those of the input."""
    return {i: i - (i > class_axis) for i in range(input.dim()) if i != class_axis}


def _local_tensors(
    function: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sharding: Sharding,
    class_axis: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """This rank's part of logits and target, with the class axis last, and of the class weights."""
    logits = class_axis_last(local_tensor(input))  # type: ignore[arg-type]
    if target.is_floating_point():
        all_axes = {i: i for i in range(input.dim())}
        target = class_axis_last(matching(function, "target", target, sharding, all_axes))
    else:
        row_axes = _row_axes(input, class_axis)
        target = matching(function, "target", target, sharding, row_axes)
    if weight is not None:
        weight = matching(function, "weight", weight, sharding, {class_axis: 0})
        weight = weight.to(compute_dtype(logits.dtype))
    return logits, target, weight


class _LocalLoss(NamedTuple):
    """The losses of this rank's rows, or their sum, what their mean divides by, and the rows."""

    loss: Tensor
    denominator: Tensor | int | None
    rows: RowOutputs | GlobalRows | None


def _loss_of_shard(
    function: str,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    group: ProcessGroup,
    num_classes: int,
    options: LossOptions,
    with_entropy: bool,
) -> _LocalLoss:
    # in the order of the group, as collectives put shards together
    shard = as_class_shard(function, group, logits.shape[-1], num_classes, None)
    check_reverse_mode(function)
    target, ignored = reference.without_ignored(target, options.ignore_index)
    row_options = RowOptions(
        *(function, options.label_smoothing > 0, with_entropy),
        *(options.logit_scale, options.softcap, False),
    )
    rows, _ = vocab_parallel_rows(logits, target, weight, shard, row_options)
    terms = loss_terms(rows, ignored, weight is not None, shard.num_classes, None, options)
    loss = loss_of_rows(terms._replace(denominator=None), rows, options)
    return _LocalLoss(loss, terms.denominator, rows)


def _loss_of_rows(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: LossOptions,
    with_entropy: bool,
) -> _LocalLoss:
    """The loss of a rank that holds all classes of its rows."""
    terms = reference.loss_terms(logits, target, weight, None, options)[2]
    summed = options if options.reduction == "none" else options._replace(reduction="sum")
    args = (logits, target, weight, None, summed, compute_dtype(logits.dtype))
    rows = None
    if with_entropy:
        loss, rows = _ops.cross_entropy_with_rows(*args, True, False)
    else:
        loss = _ops.cross_entropy_loss(*args, False)
    if options.reduction == "mean" and terms.ignored is not None:
        # the mean of no row divides by 0, and the gradient 0 times inf would be NaN
        loss = loss.masked_fill(terms.ignored.all(), 0)
    return _LocalLoss(loss, terms.denominator, rows)


def _has_checked_classes(target: Tensor) -> bool:
    """Whether invalid classes raise; on a GPU they give NaN, as a check would stop the stream."""
    is_index = not target.is_floating_point()
    return is_index and target.device.type == "cpu" and not torch.compiler.is_compiling()


def _valid_classes(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Class indices, ``ignore_index`` instead of invalid ones, and the number of these."""
    # int64 before the comparison: ignore_index would wrap around in a narrower type
    target = target.long()
    is_valid = (target == ignore_index) | ((target >= 0) & (target < num_classes))
    return target.masked_fill(~is_valid, ignore_index), (~is_valid).sum()


def _global_mean(
    function: str,
    loss: Tensor,
    local_denominator: Tensor | int | None,
    denominator: Tensor | None,
    n_invalid: Tensor | None,
    groups: list[ProcessGroup],
) -> Tensor:
    """The sum of the losses of all rows over that of their weights, with one sum over the ranks."""
    numbers = [loss]
    if denominator is None:
        numbers.append(torch.as_tensor(local_denominator).to(loss))
    if n_invalid is not None:
        numbers.append(n_invalid.to(loss))
    sums = torch.stack(numbers)
    for group in groups:
        sums = summed_over_ranks(sums, group)
    if n_invalid is not None and sums[-1] > 0:
        raise IndexError(
            f"{function} needs target of classes or ignore_index on every rank, "
            f"got {int(sums[-1])} that are neither"
        )
    return sums[0] / (sums[1] if denominator is None else denominator)
