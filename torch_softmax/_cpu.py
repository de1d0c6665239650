"""The operators on the CPU, in blocks of rows that stay in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_softmax import reference
from torch_softmax._rows import compute_dtype, empty_rows_like, folded_batch

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
    logits: Tensor, target: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """nll, smooth and normalizer of each row; IndexError for a target that is no class."""
    check_classes(target, logits.shape[-1])
    nll = torch.empty(target.shape, dtype=compute_dtype(logits.dtype), device=logits.device)
    smooth = torch.empty_like(nll)
    normalizer = nll.new_empty(*target.shape, 2)
    for logits_block, target_block, *outputs in row_blocks(logits, target, nll, smooth, normalizer):
        results = reference.cross_entropy_forward(logits_block, target_block, class_weight)
        for output, result in zip(outputs, results, strict=True):
            output.copy_(result)
    return nll, smooth, normalizer


def cross_entropy_backward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    normalizer: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
) -> Tensor:
    """dlogits = a * softmax(logits) - b * onehot(target) - s * class_weight."""
    dlogits = empty_rows_like(logits, logits.dtype)
    vectors = (target, normalizer, a, b) if s is None else (target, normalizer, a, b, s)
    for logits_block, output, target_block, *coefficients in row_blocks(logits, dlogits, *vectors):
        output.copy_(
            reference.cross_entropy_backward(
                logits_block, target_block, class_weight, *coefficients
            )
        )
    return dlogits


def row_blocks(matrix: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows of ``matrix``, each with the same rows of ``others``; outputs are views."""
    folds = folded_batch(matrix) or (1, matrix.shape[:-1].numel())
    batch_dim = matrix.dim() - 1
    tensors = [t.reshape(*folds, *t.shape[batch_dim:]) for t in (matrix, *others)]
    rows_in_block = max(1, BLOCK_ELEMENTS // max(1, matrix.shape[-1]))
    outer_in_block = max(1, rows_in_block // max(1, folds[1]))
    for outer in range(0, folds[0], outer_in_block):
        for row in range(0, folds[1], rows_in_block):
            yield tuple(
                t[outer : outer + outer_in_block, row : row + rows_in_block] for t in tensors
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
