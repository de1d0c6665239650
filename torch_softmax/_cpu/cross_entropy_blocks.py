"""Cross-entropy without the compiled module: the reference in blocks of rows that fit the cache."""

from typing import Any

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._cpu.blocks import row_blocks
from torch_softmax._cpu.class_error import class_error
from torch_softmax._layout import (
    RowOutputs,
    empty_row_outputs,
    enabled_outputs,
)
from torch_softmax._options import LossOptions


def loss_in_blocks(
    dlogits: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    dloss: Tensor | None,
    options: LossOptions,
) -> float:
    """Sum or mean of the losses; the gradient goes to ``dlogits``, which may be ``logits``."""
    target, class_weight, terms = reference.loss_terms(logits, target, weight, denominator, options)
    rows = empty_row_outputs(logits, target, class_weight, with_entropy=False)
    scaling = (options.logit_scale, options.softcap)
    forward_in_blocks(rows, logits, target, class_weight, *scaling)
    loss = terms.reduced_loss(rows).item()
    if dlogits is not None:
        coefficients = terms.coefficients(class_weight, rows, dloss)
        arguments = (class_weight, rows.softmax_stats, *coefficients, None, *scaling)
        backward_in_blocks(dlogits, logits, target, *arguments)
    return loss


def forward_in_blocks(
    outputs: RowOutputs,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> None:
    """Write the results of ``reference.cross_entropy_forward`` to ``outputs``."""
    check_classes(target, logits.shape[-1])
    with_entropy = outputs.entropy.numel() > 0
    options = (class_weight, logit_scale, softcap, with_entropy)
    enabled = enabled_outputs(target, class_weight, with_entropy)
    row_outputs = [
        output if is_enabled else None for output, is_enabled in zip(outputs, enabled, strict=True)
    ]
    for x, t, *block_outputs in row_blocks(logits, target, *row_outputs):
        _copy(block_outputs, reference.cross_entropy_forward(x, t, *options))


def backward_in_blocks(
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
    """Write ``reference.cross_entropy_backward`` to ``dlogits``, which may be ``logits``."""
    for dx, x, t, *rows in row_blocks(dlogits, logits, target, softmax_stats, a, b, s, e):
        dx.copy_(reference.cross_entropy_backward(x, t, class_weight, *rows, *scaling))


def _copy(outputs: list[Tensor | None], results: tuple[Tensor, ...]) -> None:
    for output, result in zip(outputs, results, strict=True):
        if output is not None:
            output.copy_(result)


def check_classes(target: Tensor, n_classes: int) -> None:
    """Raise IndexError unless every target is a class or a probability."""
    if target.is_floating_point() or target.numel() == 0:
        return
    for value in torch.aminmax(target):
        if not 0 <= value.item() < n_classes:
            raise class_error(value.item(), n_classes)
