"""What a rank tells the others of its rows, and what all ranks together make of it.

A rank describes its part of each row by the outputs of ``cross_entropy_forward`` on its classes
alone. They refer to the log-sum-exp of these classes, lse_r. Its gap to the log-sum-exp of all
classes, gap_r = lse - lse_r, is known after one gather, and with p_r = exp(-gap_r)

    nll = sum(nll_r + target_weight_r * gap_r)
    smooth = sum(smooth_r + weight_sum_r * gap_r)
    entropy = sum(p_r * (entropy_r + gap_r))

Every rank computes this from the same numbers in the same order, so all get the same bits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_softmax._layout import RowOutputs

# of each rank: its number of classes, its first class, the sum of its class weights
HEADER_LENGTH = 3


class ShardRows(NamedTuple):
    """A rank's part of each row; None where the options do not need it.

    Attributes:
        row_max: The largest logit, -inf where all logits of the rank are.
        log_sum_exp: log(sum(exp(logits - row_max))).
        nll: Cost of the target relative to lse_r; 0 where the rank does not hold it.
        target_weight: Gradient of nll in lse_r: for class indices 1 where the rank holds it.
        row_weight: Class weight of the target; 0 where the rank does not hold it.
        smooth: Weighted cost of all classes relative to lse_r.
        entropy: Entropy of the softmax over the rank's classes.
        prediction: Index among all classes of the largest logit, an integer's bits.
    """

    row_max: Tensor
    log_sum_exp: Tensor
    nll: Tensor
    target_weight: Tensor
    row_weight: Tensor | None
    smooth: Tensor | None
    entropy: Tensor | None
    prediction: Tensor | None


class RowNeeds(NamedTuple):
    """Which fields of :class:`ShardRows` a loss needs beyond the cost of the target."""

    row_weight: bool
    smooth: bool
    entropy: bool

    def enabled(self) -> tuple[bool, ...]:
        """For each field, whether it is needed."""
        return (True, True, True, True, self.row_weight, self.smooth, self.entropy, self.entropy)


class GlobalRows(NamedTuple):
    """Losses and statistics of each row over all classes; a disabled one has shape (0,).

    ``row_weight`` is the class weight of the target, ``weight_sum`` the sum of all class weights;
    the other fields are those of ``RowOutputs``.
    """

    nll: Tensor
    smooth: Tensor
    row_weight: Tensor
    lse: Tensor
    entropy: Tensor
    prediction: Tensor
    target_weight: Tensor
    softmax_stats: Tensor
    weight_sum: Tensor


def integer_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integer type with as many bits as ``dtype``."""
    return torch.int64 if dtype == torch.float64 else torch.int32


def packed_rows(
    rows: RowOutputs,
    needs: RowNeeds,
    is_local: Tensor | None,
    row_weight: Tensor | None,
    class_weight: Tensor | None,
    first_class: int,
    n_local: int,
) -> Tensor:
    """The header and the :class:`ShardRows` of a rank in one vector."""
    row_max, log_sum_exp = rows.softmax_stats.unbind(-1)
    # a row of -inf has row_max 0 and costs of NaN, because -inf - -inf is NaN
    is_empty = log_sum_exp == -torch.inf
    nll, target_weight = rows.nll.masked_fill(is_empty, 0), rows.target_weight
    if is_local is not None:
        nll, target_weight = nll.masked_fill(~is_local, 0), is_local.to(nll.dtype)
    columns = [row_max.masked_fill(is_empty, -torch.inf), log_sum_exp, nll, target_weight]
    if row_weight is not None:
        columns.append(row_weight)
    if needs.smooth:
        columns.append(rows.smooth.masked_fill(is_empty, 0))
    if needs.entropy:
        prediction = (rows.prediction + first_class).to(integer_dtype(nll.dtype))
        columns += [rows.entropy, prediction.view(nll.dtype)]
    weight_sum = nll.new_zeros(1) if class_weight is None else class_weight.sum().view(1)
    layout = [
        torch.full((1,), number, dtype=integer_dtype(nll.dtype), device=nll.device).view(nll.dtype)
        for number in (n_local, first_class)
    ]
    return torch.cat([*layout, weight_sum.to(nll.dtype), *(x.flatten() for x in columns)])


def layout_of_ranks(gathered: Tensor) -> Tensor:
    """Number of classes and first class of every rank, shape (ranks, 2)."""
    return gathered[:, :2].contiguous().view(integer_dtype(gathered.dtype))


def global_rows(
    gathered: Tensor, needs: RowNeeds, batch: torch.Size, is_class: Tensor | None
) -> GlobalRows:
    """What the vectors of all ranks, shape (ranks, length), say of each row.

    Rows whose target is not in the mask ``is_class`` become NaN.
    """
    shard = _unpacked(gathered, needs, batch)
    weight_sums = gathered[:, HEADER_LENGTH - 1].view(-1, *[1] * len(batch))
    largest = shard.row_max.amax(0)
    row_max = largest.masked_fill(largest == -torch.inf, 0)
    log_sum_exp = (shard.row_max - row_max + shard.log_sum_exp).exp().sum(0).log()
    gap = (row_max - shard.row_max) + (log_sum_exp - shard.log_sum_exp)
    nll = _corrected_sum(shard.nll, shard.target_weight, gap)
    target_weight = shard.target_weight.sum(0)
    if is_class is not None:
        nll = nll.masked_fill(~is_class, torch.nan)
        target_weight = target_weight.masked_fill(~is_class, torch.nan)
    nothing = [gathered.new_empty(0) for _ in range(3)]
    smooth, row_weight, entropy = nothing
    prediction = torch.empty(0, dtype=torch.int64, device=gathered.device)
    if shard.smooth is not None:
        smooth = _corrected_sum(shard.smooth, weight_sums, gap)
    if shard.row_weight is not None:
        row_weight = shard.row_weight.sum(0)
    if shard.entropy is not None and shard.prediction is not None:
        p = gap.neg().exp()
        entropy = torch.where(p == 0, 0, p * (shard.entropy + gap)).sum(0)
        prediction = _first_largest(shard.prediction, shard.row_max, largest)
    return GlobalRows(
        nll=nll,
        smooth=smooth,
        row_weight=row_weight,
        lse=row_max + log_sum_exp,
        entropy=entropy,
        prediction=prediction,
        target_weight=target_weight,
        softmax_stats=torch.stack([row_max, log_sum_exp], -1),
        weight_sum=weight_sums.sum(),
    )


def _unpacked(gathered: Tensor, needs: RowNeeds, batch: torch.Size) -> ShardRows:
    enabled = needs.enabled()
    columns = gathered[:, HEADER_LENGTH:].reshape(gathered.shape[0], sum(enabled), *batch)
    fields = iter(columns.unbind(1))
    values: list[Any] = [next(fields) if is_enabled else None for is_enabled in enabled]
    return ShardRows(*values)


def _corrected_sum(costs: Tensor, weights: Tensor, gap: Tensor) -> Tensor:
    """sum(costs + weights * gap) over the ranks, where weight 0 times an infinite gap is 0."""
    return (costs + torch.where(weights == 0, 0, weights * gap)).sum(0)


def _first_largest(index_bits: Tensor, row_max: Tensor, largest: Tensor) -> Tensor:
    index = index_bits.view(integer_dtype(index_bits.dtype)).long()
    is_largest = (row_max == largest) | row_max.isnan()
    first = index.masked_fill(~is_largest, torch.iinfo(torch.int64).max).amin(0)
    return torch.where(is_largest.any(0), first, index[0])
