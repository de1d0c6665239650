"""Checks of what a user passes to linear cross-entropy."""

from typing import Any

import torch
from torch import Tensor

from torch_softmax._layout import compute_dtype
from torch_softmax.functional.checks import (
    FLOATING,
    ArgumentTypeError,
    ArgumentValueError,
    as_int,
    check_device,
    check_floating,
    check_strided,
    check_tensor,
    check_weight,
)


def check_linear_tensors(
    function: str,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    min_classes: int = 1,
) -> None:
    """Raise unless the operands of the linear layer fit together."""
    check_strided(function, "input", input)
    check_floating(function, "input", input)
    check_strided(function, "linear_weight", linear_weight)
    if input.dim() == 0:
        raise ArgumentValueError(f"{function} needs input to have a feature axis, got a scalar")
    sizes = linear_weight.shape[:-1]
    if not sizes or sizes[0] < min_classes or 0 in sizes[1:]:
        raise ArgumentValueError(
            f"{function} needs linear_weight of shape (classes, ..., features) with at least one "
            f"class, got {tuple(linear_weight.shape)}"
        )
    if linear_weight.shape[-1] != input.shape[-1]:
        raise ArgumentValueError(
            f"{function} needs linear_weight with {input.shape[-1]} features, as input has, "
            f"got shape {tuple(linear_weight.shape)}"
        )
    if linear_weight.dim() > 2 and input.dim() == 1:
        raise ArgumentValueError(
            f"{function} needs input of shape (..., features) for linear_weight of shape "
            f"{tuple(linear_weight.shape)}, got {tuple(input.shape)}"
        )
    _check_operand(function, "linear_weight", linear_weight, input)
    if linear_bias is not None:
        check_strided(function, "linear_bias", linear_bias)
        if linear_bias.shape != linear_weight.shape[:-1]:
            raise ArgumentValueError(
                f"{function} needs linear_bias of shape {tuple(linear_weight.shape[:-1])}, "
                f"got {tuple(linear_bias.shape)}"
            )
        _check_operand(function, "linear_bias", linear_bias, input)


def _check_operand(function: str, argument: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.dtype != input.dtype:
        raise ArgumentTypeError(
            f"{function} needs {argument} of dtype {input.dtype}, as input has, got {tensor.dtype}"
        )
    check_device(function, argument, tensor, input)


def check_linear_target(
    function: str,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
) -> None:
    """Raise unless target and class weights fit the logits."""
    check_tensor(function, "target", target)
    if target.is_complex() or target.dtype == torch.bool:
        raise ArgumentTypeError(
            f"{function} needs target to be class indices of an integer type or probabilities, "
            f"got {target.dtype}"
        )
    batch, (n_classes, *others) = input.shape[:-1], linear_weight.shape[:-1]
    shape, kind = (*batch, *others), "class indices"
    if target.is_floating_point():
        check_floating(function, "target", target)
        shape, kind = (*batch, n_classes, *others), "probabilities"
        if ignore_index >= 0:
            raise ArgumentValueError(
                f"{function} needs target to be class indices for ignore_index, "
                f"got probabilities and {ignore_index}"
            )
    if target.shape != shape:
        raise ArgumentValueError(
            f"{function} needs target of shape {shape} if it holds {kind} for input of shape "
            f"{tuple(input.shape)} and linear_weight of shape {tuple(linear_weight.shape)}, "
            f"got {tuple(target.shape)}"
        )
    check_device(function, "target", target, input)
    if weight is not None:
        check_weight(function, weight, linear_weight.movedim(0, 1))


def as_logits_dtype(function: str, logits_dtype: Any, input: Tensor) -> torch.dtype:
    """The dtype of the logits, which is no narrower than that of the operands."""
    if logits_dtype is None:
        return input.dtype
    if logits_dtype not in FLOATING:
        raise ArgumentTypeError(
            f"{function} needs logits_dtype to be a floating-point dtype or None, "
            f"got {logits_dtype!r}"
        )
    if logits_dtype not in (input.dtype, compute_dtype(input.dtype)):
        raise ArgumentValueError(
            f"{function} needs logits_dtype None, {input.dtype} or "
            f"{compute_dtype(input.dtype)} for input of {input.dtype}, got {logits_dtype}"
        )
    dtype: torch.dtype = logits_dtype
    return dtype


def as_chunk_size(function: str, chunk_size: Any) -> int | None:
    """The number of rows of a chunk, ValueError unless it is at least 1."""
    if chunk_size is None:
        return None
    size = as_int(function, "chunk_size", chunk_size)
    if size < 1:
        raise ArgumentValueError(f"{function} needs chunk_size of at least 1, got {size}")
    return size
