"""What a user passes to linear cross-entropy, checked and brought to matrices of rows."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_softmax import _ops
from torch_softmax._options import LossOptions
from torch_softmax.functional.checks import as_denominator
from torch_softmax.functional.kinds import autocast_widens
from torch_softmax.functional.linear_checks import (
    as_chunk_size,
    as_logits_dtype,
    check_linear_target,
    check_linear_tensors,
)


class LinearCall(NamedTuple):
    """A head, what its loss takes besides, and the shape of the losses."""

    head: _ops.LinearHead
    # target, weight, denominator, options, dtype of the loss, chunk size
    arguments: tuple[Tensor, Tensor | None, Tensor | None, LossOptions, torch.dtype, int | None]
    shape: tuple[int, ...]  # of the losses


def as_linear_call(
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float | Tensor | None],
    options: LossOptions,
    logits_dtype: torch.dtype | None,
    chunk_size: int | None,
    min_classes: int = 1,
) -> LinearCall:
    """What a user passes, checked, as matrices of rows."""
    input, linear_weight, target, linear_bias, weight, denominator = tensors
    widens = isinstance(input, Tensor) and autocast_widens(input)
    if widens:
        input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    check_linear_tensors(name, input, linear_weight, linear_bias, min_classes)
    check_linear_target(name, input, linear_weight, target, weight, options.ignore_index)
    logits_dtype = as_logits_dtype(name, logits_dtype, input)
    denominator = as_denominator(name, denominator, options.reduction, input)
    batch, others = input.shape[:-1], linear_weight.shape[1:-1]
    bias = linear_bias if linear_bias is None else linear_bias.flatten()
    x = input.flatten(0, -2) if batch else input.unsqueeze(0)
    head = _ops.LinearHead(x, linear_weight.flatten(0, -2), bias, logits_dtype)
    dtype = torch.promote_types(logits_dtype, torch.float32) if widens else logits_dtype
    target = _as_rows(target, len(batch), others)
    chunk_size = as_chunk_size(name, chunk_size)
    arguments = (target, weight, denominator, options, dtype, chunk_size)
    return LinearCall(head, arguments, (*batch, *others))


def _as_rows(target: Tensor, batch_axes: int, others: torch.Size) -> Tensor:
    """Target of shape (rows,) or (rows, losses), or with the classes as an axis after those."""
    # products, since Size.numel() makes symbolic sizes constant
    shape = [math.prod(target.shape[:batch_axes]), *([math.prod(others)] if others else [])]
    if target.is_floating_point():
        target = target.movedim(batch_axes, -1)
        shape.append(target.shape[-1])
    return target.reshape(shape)


def _autocast(input: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """The operands in the dtype that autocast gives those of ``linear``."""
    dtype = torch.get_autocast_dtype(input.device.type)

    def cast(y: Tensor | None) -> Tensor | None:
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.dtype == torch.float64:
            return y
        return y.to(dtype)

    return tuple(map(cast, (input, *parameters)))
