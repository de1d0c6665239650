"""The operators on the CPU, in blocks of rows that stay in the cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._rows import (
    RowOutputs,
    empty_row_outputs,
    empty_rows_like,
    folded_batch,
    wanted_outputs,
)

# 1 MiB of float32, which a core's second-level cache holds
BLOCK_ELEMENTS = 2**18


def softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = exp(x) / sum(exp(x))."""
    return torch.softmax(x, -1, dtype, out=empty_rows_like(x, dtype))


def softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = y * (dy - sum(y * dy))."""
    dx = empty_rows_like(y, dtype)
    for dx_block, dy_block, y_block in row_blocks(dx, dy, y):
        dx_block.copy_(reference.softmax_backward(dy_block, y_block, dtype))
    return dx


def log_softmax_forward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = x - log(sum(exp(x)))."""
    return torch.log_softmax(x, -1, dtype, out=empty_rows_like(x, dtype))


def log_softmax_backward(dy: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    dx = empty_rows_like(y, dtype)
    for dx_block, dy_block, y_block in row_blocks(dx, dy, y):
        dx_block.copy_(reference.log_softmax_backward(dy_block, y_block, dtype))
    return dx


def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> RowOutputs:
    """Losses and statistics of each row; IndexError for a target that is no class."""
    if not target.is_floating_point():
        check_classes(target, logits.shape[-1])
    outputs = empty_row_outputs(logits, target, class_weight, with_entropy)
    wanted = wanted_outputs(target, class_weight, with_entropy)
    targets = [output if want else None for output, want in zip(outputs, wanted, strict=True)]
    for logits_block, target_block, *output_blocks in row_blocks(logits, target, *targets):
        results = reference.cross_entropy_forward(
            logits_block, target_block, class_weight, logit_scale, softcap, with_entropy
        )
        for output_block, result in zip(output_blocks, results, strict=True):
            if output_block is not None:
                output_block.copy_(result)
    return outputs


def cross_entropy_backward(logits: Tensor, *args: Any) -> Tensor:
    """dlogits, as ``reference.cross_entropy_backward`` defines it."""
    dlogits = empty_rows_like(logits, logits.dtype)
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
    normalizer: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> None:
    blocks = row_blocks(dlogits, logits, target, normalizer, a, b, s, e)
    # in each round the names stand for one block of rows
    for output, logits, target, normalizer, a, b, s, e in blocks:
        output.copy_(
            reference.cross_entropy_backward(
                logits, target, class_weight, normalizer, a, b, s, e, logit_scale, softcap
            )
        )


def row_blocks(matrix: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Blocks of rows of ``matrix``, each with the same rows of ``others``; outputs are views."""
    folds = folded_batch(matrix) or (1, matrix.shape[:-1].numel())
    batch_dim = matrix.dim() - 1
    tensors = [
        None if t is None else t.reshape(*folds, *t.shape[batch_dim:]) for t in (matrix, *others)
    ]
    rows_in_block = max(1, BLOCK_ELEMENTS // max(1, matrix.shape[-1]))
    outer_in_block = max(1, rows_in_block // max(1, folds[1]))
    for outer in range(0, folds[0], outer_in_block):
        for row in range(0, folds[1], rows_in_block):
            yield tuple(
                None if t is None else t[outer : outer + outer_in_block, row : row + rows_in_block]
                for t in tensors
            )


def check_classes(target: Tensor, n_classes: int) -> None:
    """Raise IndexError unless every target is a class; on a CPU, looking costs no waiting."""
    if target.numel() == 0:
        return
    for value in torch.stack(target.aminmax()).tolist():
        if not 0 <= value < n_classes:
            raise IndexError(
                f"cross_entropy needs target in [0, {n_classes}) or equal to ignore_index, "
                f"got {value}"
            )
