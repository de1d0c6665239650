"""The cross-entropy operators: compiled code, or blocks of PyTorch's operators without it."""

from typing import Any

import torch
from torch import Tensor

from torch_softmax._cpu import compiled_cross_entropy
from torch_softmax._cpu.compiled_cross_entropy import (
    compiled_backward,
    compiled_forward,
    compiled_loss,
)
from torch_softmax._cpu.cross_entropy_blocks import (
    backward_in_blocks,
    forward_in_blocks,
    loss_in_blocks,
)
from torch_softmax._cpu.results import empty_result_like
from torch_softmax._layout import RowOutputs, empty_row_outputs
from torch_softmax._options import DEFAULT_OPTIONS, LossOptions


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    denominator: Tensor | None = None,
    dtype: torch.dtype | None = None,
    with_gradient: bool = True,
    *options: Any,
    dloss: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of all rows in ``dtype``, and dlogits, which is empty without gradient."""
    dlogits = empty_result_like(logits) if with_gradient else None
    loss = _loss(dlogits, logits, target, weight, denominator, dloss, dtype, options)
    return loss, logits.new_empty(0) if dlogits is None else dlogits


def cross_entropy_loss_inplace(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    denominator: Tensor | None = None,
    dtype: torch.dtype | None = None,
    *options: Any,
    dloss: Tensor | None = None,
) -> Tensor:
    """The loss of all rows in ``dtype``; dlogits overwrites the logits."""
    return _loss(logits, logits, target, weight, denominator, dloss, dtype, options)


def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> RowOutputs:
    """Losses and statistics of each row, as ``reference.cross_entropy_forward`` defines them."""
    outputs = empty_row_outputs(logits, target, class_weight, with_entropy)
    forward = compiled_forward if _is_compiled(logits) else forward_in_blocks
    forward(outputs, logits, target, class_weight, logit_scale, softcap)
    return outputs


def cross_entropy_backward(logits: Tensor, *args: Any) -> Tensor:
    """dlogits, as ``reference.cross_entropy_backward`` defines it."""
    dlogits = empty_result_like(logits)
    backward = compiled_backward if _is_compiled(logits) else backward_in_blocks
    backward(dlogits, logits, *args)
    return dlogits


def cross_entropy_backward_inplace(logits: Tensor, *args: Any) -> None:
    """dlogits overwrites the logits."""
    backward = compiled_backward if _is_compiled(logits) else backward_in_blocks
    backward(logits, logits, *args)


def _loss(
    dlogits: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    dloss: Tensor | None,
    dtype: torch.dtype | None,
    options: tuple[Any, ...],
) -> Tensor:
    loss = compiled_loss if _is_compiled(logits) else loss_in_blocks
    filled = LossOptions(*options) if options else DEFAULT_OPTIONS
    value = loss(dlogits, logits, target, weight, denominator, dloss, filled)
    return torch.scalar_tensor(value, dtype=dtype or logits.dtype)


def _is_compiled(logits: Tensor) -> bool:
    return compiled_cross_entropy.compiled is not None and logits.numel() > 0
