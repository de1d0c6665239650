"""Launchers of cross-entropy, against class indices and against probabilities."""

from functools import partial
from typing import Any

from torch import Tensor

from torch_softmax._kernels.cross_entropy import (
    cross_entropy_backward_kernel,
    cross_entropy_forward_kernel,
)
from torch_softmax._kernels.soft_cross_entropy import (
    soft_cross_entropy_backward_kernel,
    soft_cross_entropy_forward_kernel,
)
from torch_softmax._kernels.tiling import WALK
from torch_softmax._launch.start import Rows
from torch_softmax._layout import (
    RowOutputs,
    empty_row_outputs,
    empty_rows_like,
    gradient_in_lse,
    wanted_outputs,
)

# these kernels walk rows once, or take them block by block, and need not hold any as a whole
_rows = partial(Rows, max_tile_bytes=WALK.tile_bytes)


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
    wanted = wanted_outputs(target, class_weight, with_entropy)
    nll, smooth, target_weight, lse, entropy, prediction, softmax_stats = (
        output if want else None for output, want in zip(outputs, wanted, strict=True)
    )
    row_outputs: tuple[Tensor | None, ...] = (nll, smooth, softmax_stats, lse, entropy, prediction)

    # the logits, and what each further sum holds beside them while a block is folded in
    held_values = 1 + (smooth is not None) + (target_weight is not None) + 2 * with_entropy
    if target_weight is None:
        kernel, rows = cross_entropy_forward_kernel, _rows(logits, held_values=held_values)
        logits_rows, target_rows = rows.folded[0], target.contiguous()
    else:
        kernel, row_outputs = soft_cross_entropy_forward_kernel, (*row_outputs, target_weight)
        rows = _rows(logits, target, held_values=held_values)
        logits_rows, target_rows = rows.folded
    rows.start(
        kernel,
        logits_rows,
        target_rows,
        _contiguous(class_weight),
        row_outputs,
        rows.n_rows,
        rows.n_cols,
        *(matrix.stride() for matrix in rows.folded),
        LANES=rows.lanes,
        CAP=(logit_scale, softcap),
    )
    return outputs


def launch_cross_entropy_backward(logits: Tensor, *args: Any) -> Tensor:
    """dlogits, as ``reference.cross_entropy_backward`` defines it."""
    dlogits = empty_rows_like(logits, logits.dtype)
    _launch_backward_into(dlogits, logits, *args)
    return dlogits


def launch_cross_entropy_backward_inplace(logits: Tensor, *args: Any) -> None:
    """dlogits, over the logits: a program reads its tile before it writes it."""
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
    soft = target.is_floating_point()
    held_values = 1 + soft + (s is not None) + (e is not None)
    if soft:
        kernel = soft_cross_entropy_backward_kernel
        rows = _rows(logits, target, dlogits, held_values=held_values)
        logits_rows, target_rows, dlogits_rows = rows.folded
    else:
        kernel, target_rows = cross_entropy_backward_kernel, target.contiguous()
        rows = _rows(logits, dlogits, held_values=held_values)
        logits_rows, dlogits_rows = rows.folded
    rows.start(
        kernel,
        logits_rows,
        target_rows,
        _contiguous(class_weight),
        # autograd hands out expanded gradients (stride 0) for .sum(); vectors are contiguous here
        tuple(_contiguous(vector) for vector in (softmax_stats, a, b, s, e)),
        dlogits_rows,
        rows.n_rows,
        rows.n_cols,
        tuple(matrix.stride() for matrix in rows.folded),
        grid=(rows.row_blocks, rows.col_blocks),
        CAP=(logit_scale, softcap),
    )


def launch_cross_entropy_step(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of each row and dlogits, as ``reference.cross_entropy_step`` defines them."""
    dlogits = empty_rows_like(logits, logits.dtype)
    return (*_launch_step_into(dlogits, logits, *args), dlogits)


def launch_cross_entropy_step_inplace(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of each row; and dlogits, over the logits."""
    return _launch_step_into(logits, logits, *args)


def _launch_step_into(
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
    # two kernels; against class indices launch_cross_entropy_loss has one
    options = (logit_scale, softcap)
    outputs = launch_cross_entropy_forward(logits, target, class_weight, *options, False)
    target_weight = outputs.target_weight if target.is_floating_point() else 1
    a = gradient_in_lse(b * target_weight, class_weight, s, z, outputs.lse)
    coefficients = (outputs.softmax_stats, a, b, s, None)
    _launch_backward_into(dlogits, logits, target, class_weight, *coefficients, *options)
    return outputs.nll, outputs.smooth, outputs.lse


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
