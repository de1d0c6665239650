"""Launchers of the sum or mean of the losses of all rows, and of its gradient."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from torch_softmax._kernels.arithmetic import SoftCap
from torch_softmax._kernels.cross_entropy_loss import (
    cross_entropy_loss_kernel,
    cross_entropy_loss_online_kernel,
    weight_sum_kernel,
)
from torch_softmax._kernels.loss_epilogue import Denominator, FloatPair, LossOptions, LossOutput
from torch_softmax._kernels.tiling import (
    MAX_TILE_BYTES,
    MAX_WEIGHT_PARTIALS,
    MIN_TILE_BYTES,
    READ_ONCE,
    READ_TWICE,
    READ_TWICE_FLOAT64,
    READ_TWICE_TWO_MATRICES,
    WEIGHT_SUM_ROWS,
    cdiv,
)
from torch_softmax._launch.schedule import Kernel, Limits, Rows, launch
from torch_softmax._layout import compute_dtype, empty_rows_like


def launch_cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    dtype: torch.dtype,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Sum or mean of the losses in ``dtype``, and its gradient or an empty tensor."""
    dlogits = empty_rows_like(logits, logits.dtype) if with_gradient else None
    options = LossOptions(ignore_index, _pair(label_smoothing), _pair(z_loss))
    cap = SoftCap(logit_scale, softcap)
    loss = _launch_into(
        dlogits, logits, target, weight, denominator, reduction == "mean", options, cap, dtype
    )
    return loss, logits.new_empty(0) if dlogits is None else dlogits


def launch_cross_entropy_loss_inplace(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Sum or mean of the losses in ``dtype``; their gradient overwrites the logits."""
    options = LossOptions(ignore_index, _pair(label_smoothing), _pair(z_loss))
    cap = SoftCap(logit_scale, softcap)
    return _launch_into(
        logits, logits, target, weight, denominator, reduction == "mean", options, cap, dtype
    )


def _launch_into(
    dlogits: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    is_mean: bool,
    options: LossOptions,
    cap: SoftCap,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the kernels; the gradient goes to ``dlogits``, which may be ``logits``."""
    if logits.numel() == 0:
        return _loss_of_no_rows(logits, denominator, is_mean, dtype)
    rows, target_rows = _rows(dlogits, logits, target, weight, options, cap)
    device, wide = logits.device, compute_dtype(logits.dtype)
    weight = None if weight is None else weight.contiguous()
    counter, divisor = _counter_and_denominator(
        logits, target_rows.ptr, weight, denominator, is_mean, options
    )
    loss = torch.empty((), dtype=dtype, device=device)
    partials = torch.empty(rows.schedule.row_blocks, dtype=wide, device=device)
    kernel: Kernel = cross_entropy_loss_kernel
    constexprs: dict[str, Any] = {"SOFTCAP": cap}
    if rows.schedule.col_blocks > 1:
        kernel = cross_entropy_loss_online_kernel
        constexprs["N_PARTIALS"] = rows.schedule.n_partials
    rows.launch(
        kernel,
        rows.matrices[0],
        target_rows,
        weight,
        None if dlogits is None else rows.matrices[-1],
        LossOutput(loss, partials, counter),
        divisor,
        rows.n_rows,
        rows.n_cols,
        options,
        **constexprs,
    )
    return loss


def _counter_and_denominator(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    is_mean: bool,
    options: LossOptions,
) -> tuple[Tensor, Denominator]:
    """A counter of finished programs, initially 0, and the denominator of the sum of the losses."""
    device, n_rows = logits.device, logits.shape[:-1].numel()
    if not is_mean or denominator is not None or target.is_floating_point():
        # filling the counter with 0 costs less than a launch of weight_sum_kernel
        counter = torch.zeros(1, dtype=torch.int32, device=device)
        if denominator is not None:
            return counter, Denominator(denominator, 1)
        return counter, Denominator(None, n_rows if is_mean else 1)
    counter = torch.empty(1, dtype=torch.int32, device=device)
    n_partials = min(cdiv(n_rows, WEIGHT_SUM_ROWS), MAX_WEIGHT_PARTIALS)
    partials = torch.empty(n_partials, dtype=compute_dtype(logits.dtype), device=device)
    launch(
        weight_sum_kernel,
        (n_partials,),
        device,
        target,
        weight,
        partials,
        counter,
        n_rows,
        logits.shape[-1],
        options.ignore_index,
        BLOCK_ROWS=WEIGHT_SUM_ROWS,
        num_warps=8,
    )
    return counter, Denominator(partials, n_partials)


def _rows(
    dlogits: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: LossOptions,
    cap: SoftCap,
) -> tuple[Rows, Any]:
    """The rows of logits and their gradient, and their targets as a matrix."""
    is_probability = target.is_floating_point()
    weighs_classes = weight is not None and (is_probability or options.label_smoothing is not None)
    read_twice = READ_TWICE_TWO_MATRICES if is_probability else READ_TWICE
    if logits.dtype == torch.float64:
        read_twice = READ_TWICE_FLOAT64
    limits = Limits(
        live_values=1 + is_probability + weighs_classes + (cap.cap is not None),
        # only a gradient needs whole rows in a tile, or a second read
        max_tile_bytes=READ_ONCE.tile_bytes if dlogits is None else MAX_TILE_BYTES,
        min_tile_bytes=2 * MIN_TILE_BYTES,
        online=READ_ONCE if dlogits is None else read_twice,
        may_pack=True,
    )
    results = () if dlogits is None else (dlogits,)
    if is_probability:
        rows = Rows(logits, target, *results, limits=limits)
        return rows, rows.matrices[1]
    rows = Rows(logits, *results, limits=limits)
    return rows, rows.target_indices(target)


def _loss_of_no_rows(
    logits: Tensor, denominator: Tensor | None, is_mean: bool, dtype: torch.dtype
) -> Tensor:
    """0 / denominator: NaN for the default denominator of a mean, which is 0."""
    loss = torch.zeros((), dtype=compute_dtype(logits.dtype), device=logits.device)
    if denominator is not None:
        loss = loss / denominator
    elif is_mean:
        loss = loss / 0
    return loss.to(dtype)


def _pair(number: float) -> FloatPair | None:
    """A float64 as a pair of float32 for a kernel, or None for 0."""
    if number == 0:
        return None
    high = ctypes.c_float(number).value
    return FloatPair(high, number - high)
