"""Cross-entropy and its gradient, block by block."""

from typing import Any

from torch import Tensor

from torch_softmax._cpu.blocks import fits_a_block, row_blocks
from torch_softmax._cpu.cross_entropy_block import (
    backward_block,
    check_classes,
    forward_block,
    step_block,
)
from torch_softmax._cpu.results import empty_result_like
from torch_softmax._layout import RowOutputs, empty_row_outputs, wanted_outputs


def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> RowOutputs:
    """Losses and statistics of each row; IndexError for a target that is no class."""
    options = (class_weight, logit_scale, softcap, with_entropy)
    if fits_a_block(logits):
        # without copies into results, which are much of the time of a small block
        return RowOutputs(*forward_block(logits, target, *options))
    outputs = empty_row_outputs(logits, target, class_weight, with_entropy)
    wanted = wanted_outputs(target, class_weight, with_entropy)
    row_outputs = [output if want else None for output, want in zip(outputs, wanted, strict=True)]
    for logits_block, target_block, *output_blocks in row_blocks(logits, target, *row_outputs):
        results = forward_block(logits_block, target_block, *options)
        for output_block, result in zip(output_blocks, results, strict=True):
            if output_block is not None:
                output_block.copy_(result)
    return outputs


def cross_entropy_backward(logits: Tensor, *args: Any) -> Tensor:
    """dlogits, as ``reference.cross_entropy_backward`` defines it."""
    dlogits = empty_result_like(logits, logits.dtype)
    _cross_entropy_backward_into(dlogits, logits, *args)
    return dlogits


def cross_entropy_backward_inplace(logits: Tensor, *args: Any) -> None:
    """dlogits, over the logits."""
    _cross_entropy_backward_into(logits, logits, *args)


def _cross_entropy_backward_into(
    dlogits: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> None:
    blocks = row_blocks(dlogits, logits, target, softmax_stats, a, b, s, e)
    # in each round the names stand for one block of rows
    for output, logits, target, softmax_stats, a, b, s, e in blocks:
        coefficients = (a, b, s, e, logit_scale, softcap)
        output.copy_(backward_block(logits, target, class_weight, softmax_stats, *coefficients))


def cross_entropy_step(
    logits: Tensor, target: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of each row and dlogits, as ``reference.cross_entropy_step`` defines them."""
    if fits_a_block(logits):
        nll, smooth, lse, dlogits = step_block(logits, target, *args)
        return nll, smooth, lse, dlogits.to(logits.dtype)
    dlogits = empty_result_like(logits, logits.dtype)
    return (*_cross_entropy_step_into(dlogits, logits, target, *args), dlogits)


def cross_entropy_step_inplace(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of each row; and dlogits, over the logits."""
    return _cross_entropy_step_into(logits, logits, *args)


def _cross_entropy_step_into(
    dlogits: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    b: Tensor,
    s: Tensor | None,
    z: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if not target.is_floating_point():
        # before the first row is written
        check_classes(target, logits.shape[-1])
    rows = empty_row_outputs(logits, target, class_weight, with_entropy=False)
    smooths = None if class_weight is None else rows.smooth
    blocks = row_blocks(dlogits, logits, target, b, s, z, rows.nll, smooths, rows.lse)
    for output, logits, target, b, s, z, nll, smooth, lse in blocks:
        options = (class_weight, b, s, z, logit_scale, softcap)
        # an output of another dtype holds no intermediate results
        out = output if output.dtype == nll.dtype else None
        *results, gradient = step_block(logits, target, *options, out)
        for row_output, result in zip((nll, smooth, lse), results, strict=True):
            if row_output is not None:
                row_output.copy_(result)
        if gradient is not output:
            output.copy_(gradient)
    return rows.nll, rows.smooth, rows.lse
