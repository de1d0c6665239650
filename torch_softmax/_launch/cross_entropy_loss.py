"""Launcher of the loss of all rows and its gradient."""

import ctypes

import torch
from torch import Tensor

from torch_softmax._kernels.cross_entropy_loss import (
    cross_entropy_count_kernel,
    cross_entropy_loss_kernel,
    cross_entropy_loss_online_kernel,
)
from torch_softmax._kernels.packed_cross_entropy_loss import cross_entropy_loss_packed_kernel
from torch_softmax._kernels.tiling import (
    COUNTED_ROWS,
    FEW_COUNTS,
    MAX_COUNTS,
    MAX_TILE_BYTES,
    MIN_TILE_BYTES,
    WALK,
    WALK_FLOAT64,
    WALK_TWICE,
    cdiv,
)
from torch_softmax._launch.start import Rows, start
from torch_softmax._layout import compute_dtype
from torch_softmax._options import LossOptions


def launch_cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    dlogits: Tensor | None,
) -> Tensor:
    """Sum or mean of the losses in ``dtype``; their gradient in ``dlogits``, which may be logits.

    Against class indices, of at least one row and class.
    """
    smoothing = options.label_smoothing
    with_smoothing, with_cap = smoothing > 0, options.softcap is not None
    walk_twice = WALK_FLOAT64 if logits.dtype == torch.float64 else WALK_TWICE
    rows = Rows(
        *((logits,) if dlogits is None else (logits, dlogits)),
        held_values=1 + (with_smoothing and class_weight is not None) + with_cap,
        # only for a gradient a row is held, or read again
        max_tile_bytes=WALK.tile_bytes if dlogits is None else MAX_TILE_BYTES,
        min_tile_bytes=2 * MIN_TILE_BYTES,
        walk=WALK if dlogits is None else walk_twice,
        may_be_packed=True,
    )
    wide = compute_dtype(logits.dtype)
    is_mean = options.reduction == "mean"
    n_rows, n_programs = logits.shape[:-1].numel(), rows.row_blocks
    n_counts = cdiv(n_rows, COUNTED_ROWS) if is_mean else 1
    max_counts = FEW_COUNTS if n_counts <= FEW_COUNTS else MAX_COUNTS
    n_counts = min(n_counts, max_counts)
    target = target.contiguous()
    class_weight = None if class_weight is None else class_weight.to(wide).contiguous()
    loss = torch.empty((), dtype=dtype, device=logits.device)
    # sums of weights, a loss for each program, and how many of these are done
    scratch = torch.empty(max_counts + n_programs + 1, dtype=wide, device=logits.device)
    start(
        cross_entropy_count_kernel,
        (n_counts,),
        logits.device,
        target,
        class_weight,
        scratch,
        n_rows if is_mean else 0,
        rows.n_cols,
        n_programs,
        options.ignore_index,
        BLOCK_ROWS=COUNTED_ROWS,
        COUNTS=max_counts,
        num_warps=8,
    )
    if rows.is_packed:
        kernel = cross_entropy_loss_packed_kernel
    elif rows.col_blocks == 1:
        kernel = cross_entropy_loss_kernel
    else:
        kernel = cross_entropy_loss_online_kernel
    rows.start(
        kernel,
        rows.folded[0],
        target,
        class_weight,
        loss,
        scratch,
        None if dlogits is None else rows.folded[-1],
        rows.n_rows,
        rows.n_cols,
        n_counts,
        options.ignore_index,
        (_floats(smoothing), _floats(options.z_loss)),
        (rows.folded[0].stride(), rows.folded[-1].stride()),
        LANES=rows.lanes,
        CAP=(options.logit_scale, options.softcap),
        COUNTS=max_counts,
        MEAN=is_mean,
    )
    return loss


def _floats(number: float) -> tuple[float, float] | None:
    """A float64 as a kernel takes it: what float32 holds of it, and the rest."""
    if number == 0:
        return None
    narrow = ctypes.c_float(number).value
    return narrow, number - narrow
