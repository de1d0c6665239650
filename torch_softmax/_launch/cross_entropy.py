"""Launchers of cross-entropy."""

import torch
from torch import Tensor

from torch_softmax._launch.start import Rows
from torch_softmax._rows import compute_dtype, empty_rows_like
from triton_kernels.cross_entropy import (
    cross_entropy_backward_kernel,
    cross_entropy_forward_kernel,
)


def launch_cross_entropy_forward(
    logits: Tensor, target: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """nll, smooth and normalizer of each row."""
    nll = torch.empty(target.shape, dtype=compute_dtype(logits.dtype), device=logits.device)
    smooth = torch.empty_like(nll)
    normalizer = nll.new_empty(*target.shape, 2)
    if target.numel() == 0:
        return nll, smooth, normalizer
    rows = Rows(logits, held_values=1)
    logits_rows = rows.folded(logits)
    rows.start(
        cross_entropy_forward_kernel,
        logits_rows,
        _contiguous(target),
        _contiguous(class_weight),
        nll,
        smooth,
        normalizer,
        rows.n_rows,
        rows.n_cols,
        logits_rows.stride(),
    )
    return nll, smooth, normalizer


def launch_cross_entropy_backward(
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
    if logits.numel() == 0:
        return dlogits
    rows = Rows(logits, held_values=1)
    logits_rows, dlogits_rows = rows.folded(logits), rows.folded(dlogits)
    rows.start(
        cross_entropy_backward_kernel,
        logits_rows,
        _contiguous(target),
        _contiguous(class_weight),
        _contiguous(normalizer),
        # autograd hands out expanded gradients (stride 0) for .sum(); vectors are contiguous here
        (_contiguous(a), _contiguous(b), _contiguous(s)),
        dlogits_rows,
        rows.n_rows,
        rows.n_cols,
        logits_rows.stride(),
        dlogits_rows.stride(),
        col_blocks=rows.col_blocks,
    )
    return dlogits


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
