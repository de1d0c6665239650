"""The cross-entropy operators without a compiler: the reference in blocks of rows.

``operators.cpp`` has the same operators in compiled code.
"""

from typing import Any

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._cpu.blocks import row_blocks
from torch_softmax._cpu.results import empty_result_like
from torch_softmax._layout import RowOutputs, empty_row_outputs, enabled_outputs
from torch_softmax._options import LossOptions


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
    loss = _loss(dlogits, logits, target, weight, denominator, dtype, options, dloss)
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
    return _loss(logits, logits, target, weight, denominator, dtype, options, dloss)


def _loss(
    dlogits: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    dtype: torch.dtype | None,
    some_options: tuple[Any, ...],
    dloss: Tensor | None,
) -> Tensor:
    options = LossOptions(*some_options)
    target, class_weight, terms = reference.loss_terms(logits, target, weight, denominator, options)
    scaling = (options.logit_scale, options.softcap)
    rows = cross_entropy_forward(logits, target, class_weight, *scaling, with_entropy=False)
    loss = terms.loss(rows, options.reduction).to(dtype or logits.dtype)
    if dlogits is not None:
        coefficients = terms.coefficients(class_weight, rows, dloss)
        arguments = (class_weight, rows.softmax_stats, *coefficients, None, *scaling)
        _write_gradient(dlogits, logits, target, *arguments)
    return loss


def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> RowOutputs:
    """Losses and statistics of each row, as ``reference.cross_entropy_forward`` defines them."""
    _check_classes(target, logits.shape[-1])
    outputs = empty_row_outputs(logits, target, class_weight, with_entropy)
    options = (class_weight, logit_scale, softcap, with_entropy)
    enabled = enabled_outputs(target, class_weight, with_entropy)
    row_outputs = [
        output if is_enabled else None for output, is_enabled in zip(outputs, enabled, strict=True)
    ]
    for x, t, *block_outputs in row_blocks(logits, target, *row_outputs):
        results = reference.cross_entropy_forward(x, t, *options)
        for output, result in zip(block_outputs, results, strict=True):
            if output is not None:
                output.copy_(result)
    return outputs


def cross_entropy_backward(logits: Tensor, *args: Any) -> Tensor:
    """dlogits, as ``reference.cross_entropy_backward`` defines it."""
    dlogits = empty_result_like(logits)
    _write_gradient(dlogits, logits, *args)
    return dlogits


def cross_entropy_backward_inplace(logits: Tensor, *args: Any) -> None:
    """dlogits overwrites the logits."""
    _write_gradient(logits, logits, *args)


def _write_gradient(
    dlogits: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
    *scaling: Any,
) -> None:
    for dx, x, t, *rows in row_blocks(dlogits, logits, target, softmax_stats, a, b, s, e):
        dx.copy_(reference.cross_entropy_backward(x, t, class_weight, *rows, *scaling))


def _check_classes(target: Tensor, n_classes: int) -> None:
    """Raise IndexError unless every target is a class or a probability."""
    if target.is_floating_point() or target.numel() == 0:
        return
    for value in torch.aminmax(target):
        if not 0 <= value.item() < n_classes:
            raise IndexError(
                f"cross_entropy needs target in [0, {n_classes}) or equal to ignore_index, "
                f"got {value.item()}"
            )
