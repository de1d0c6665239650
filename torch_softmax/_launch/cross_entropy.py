"""Launchers of cross-entropy with losses, statistics and coefficients per row."""

from typing import Any

from torch import Tensor

from torch_softmax._kernels.arithmetic import SoftCap
from torch_softmax._kernels.cross_entropy import (
    RowInputPointers,
    RowOutputPointers,
    cross_entropy_backward_kernel,
    cross_entropy_forward_kernel,
)
from torch_softmax._kernels.tiling import READ_ONCE
from torch_softmax._launch.schedule import Limits, Rows
from torch_softmax._layout import RowOutputs, empty_row_outputs, empty_rows_like


def launch_cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> RowOutputs:
    """Losses and statistics of each row."""
    outputs = empty_row_outputs(logits, target, class_weight, with_entropy)
    if outputs.nll.numel() == 0:
        return outputs
    # the logits, and the values that each further sum keeps per element
    live_values = 1 + (class_weight is not None) + target.is_floating_point() + 2 * with_entropy
    rows, target_rows = _rows(live_values, logits, target)
    rows.launch(
        cross_entropy_forward_kernel,
        rows.matrices[0],
        target_rows,
        _contiguous(class_weight),
        # disabled outputs are empty; a None pointer removes them from the kernel
        RowOutputPointers(*(output if output.numel() else None for output in outputs)),
        rows.n_rows,
        rows.n_cols,
        N_PARTIALS=rows.schedule.n_partials,
        SOFTCAP=SoftCap(logit_scale, softcap),
    )
    return outputs


def launch_cross_entropy_backward(logits: Tensor, *args: Any) -> Tensor:
    """dlogits, as ``reference.cross_entropy_backward`` defines it."""
    dlogits = empty_rows_like(logits)
    _launch_backward_into(dlogits, logits, *args)
    return dlogits


def launch_cross_entropy_backward_inplace(logits: Tensor, *args: Any) -> None:
    """dlogits overwrites the logits: a program reads its tile before it writes it."""
    _launch_backward_into(logits, logits, *args)


def _launch_backward_into(
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
    if logits.numel() == 0:
        return
    live_values = 1 + target.is_floating_point() + (s is not None) + (e is not None)
    rows, target_rows = _rows(live_values, logits, target, dlogits)
    rows.launch(
        cross_entropy_backward_kernel,
        rows.matrices[0],
        target_rows,
        _contiguous(class_weight),
        # contiguous, because autograd passes expanded gradients (stride 0) for .sum()
        RowInputPointers(*map(_contiguous, (softmax_stats, a, b, s, e))),
        rows.matrices[-1],
        rows.n_rows,
        rows.n_cols,
        grid=(rows.schedule.row_blocks, rows.schedule.col_blocks),
        SOFTCAP=SoftCap(logit_scale, softcap),
    )


def _rows(live_values: int, logits: Tensor, target: Tensor, *results: Tensor) -> tuple[Rows, Any]:
    """The rows of logits and results, and their targets as a matrix."""
    # the kernels read rows block by block, so a tile need not hold whole rows
    limits = Limits(live_values, max_tile_bytes=READ_ONCE.tile_bytes)
    if target.is_floating_point():
        rows = Rows(logits, target, *results, limits=limits)
        return rows, rows.matrices[1]
    rows = Rows(logits, *results, limits=limits)
    return rows, rows.target_indices(target)


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
