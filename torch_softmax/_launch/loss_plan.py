"""What the launches of a loss share as long as the layouts and options stay the same."""

import ctypes

import torch
from torch import Tensor

from torch_softmax._kernels.arithmetic import SoftCap
from torch_softmax._kernels.cross_entropy_loss import (
    cross_entropy_loss_kernel,
    cross_entropy_loss_online_kernel,
    weight_sum_kernel,
)
from torch_softmax._kernels.loss_epilogue import (
    Denominator,
    FloatPair,
    IncomingGradient,
    LossOutput,
)
from torch_softmax._kernels.loss_epilogue import LossOptions as KernelOptions
from torch_softmax._kernels.tiles import Matrix
from torch_softmax._kernels.tiling import (
    CLUSTER_COLS,
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
from torch_softmax._launch.schedule import Limits, Rows
from torch_softmax._launch.specialized import Kernel, Launch
from torch_softmax._layout import compute_dtype
from torch_softmax._options import LossOptions


class LossPlan:
    """The launches of a loss, for tensors of one layout and one set of options."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        denominator: Tensor | None,
        dloss: Tensor | None,
        dlogits: Tensor | None,
        options: LossOptions,
    ) -> None:
        """Choose the tile, the kernels and the grid."""
        rows = _rows(logits, target, weight, dlogits, options)
        self.strides = [matrix[1:] for matrix in rows.matrices]
        self.n_rows, self.n_cols = rows.n_rows, rows.n_cols
        self.n_programs = rows.schedule.row_blocks
        self.options = KernelOptions(
            options.ignore_index, _pair(options.label_smoothing), _pair(options.z_loss)
        )
        self.loss = _loss_launch(rows, options)
        self.has_rows = options.reduction == "none"
        if self.has_rows and denominator is not None:
            raise ValueError("cross_entropy needs denominator=None for reduction='none'")
        self.dloss_stride = int(self.has_rows and dloss is not None and any(dloss.stride()))
        self.weight_sum: Launch | None = None
        in_clusters = rows.schedule.tile.num_ctas > 1
        # the blocks of a cluster would have to meet to add up partial sums
        self.n_weights: int | None = None if in_clusters and denominator is not None else 1
        if denominator is None and options.reduction == "mean":
            self._choose_denominator(logits, target, in_clusters)

    def _choose_denominator(self, logits: Tensor, target: Tensor, in_clusters: bool) -> None:
        """Have the mean's own denominator computed, where the shape does not tell it."""
        n_rows = logits.shape[:-1].numel()
        if target.is_floating_point():
            self.n_weights = n_rows
        elif self.n_programs == 1:
            self.n_weights = None
        else:
            n_partials = min(cdiv(n_rows, WEIGHT_SUM_ROWS), MAX_WEIGHT_PARTIALS)
            n_partials = 1 if in_clusters else n_partials
            self.n_weights = None if in_clusters else n_partials
            self.weight_sum = Launch(
                weight_sum_kernel,
                (n_partials,),
                logits.device,
                BLOCK_ROWS=WEIGHT_SUM_ROWS,
                num_warps=8,
            )

    def launch(
        self,
        loss: Tensor,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        denominator: Tensor | None,
        dloss: Tensor | None,
        dlogits: Tensor | None,
    ) -> None:
        """Launch the kernels with such tensors, whose batch dims collapse without a copy."""
        partials = counter = None
        if self.n_programs > 1 and not self.has_rows:
            dtype, device = compute_dtype(logits.dtype), logits.device
            partials = torch.empty(self.n_programs, dtype=dtype, device=device)
            if self.weight_sum is None:
                # one fill costs less than a launch of weight_sum_kernel
                counter = torch.zeros(1, dtype=torch.int32, device=device)
            else:
                counter = torch.empty(1, dtype=torch.int32, device=device)
                denominator = torch.empty(self.weight_sum.grid, dtype=dtype, device=device)
                vectors = (target, weight, denominator, counter)
                n_rows, ignore_index = logits.shape[:-1].numel(), self.options.ignore_index
                self.weight_sum(*vectors, n_rows, self.n_cols, ignore_index)
        output = LossOutput(loss, partials, counter, None)
        if self.has_rows:
            output = LossOutput(None, None, None, loss)
        incoming = None if dloss is None else IncomingGradient(dloss, self.dloss_stride)
        self.loss(
            Matrix(logits, *self.strides[0]),
            Matrix(target, *self.strides[1]),
            weight,
            None if dlogits is None else Matrix(dlogits, *self.strides[2]),
            output,
            Denominator(denominator, self.n_weights, incoming),
            self.n_rows,
            self.n_cols,
            self.options,
        )


def _loss_launch(rows: Rows, options: LossOptions) -> Launch:
    cap = SoftCap(options.logit_scale, options.softcap)
    if rows.schedule.col_blocks > 1:
        n_partials = rows.schedule.n_partials
        kernel: Kernel = cross_entropy_loss_online_kernel
        return rows.launch_of(kernel, N_PARTIALS=n_partials, SOFTCAP=cap)
    return rows.launch_of(cross_entropy_loss_kernel, SOFTCAP=cap)


def _rows(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    dlogits: Tensor | None,
    options: LossOptions,
) -> Rows:
    """The rows of logits, of the target, and of the gradient if there is one."""
    is_probability = target.is_floating_point()
    weighs_classes = weight is not None and (is_probability or options.label_smoothing != 0)
    read_twice = READ_TWICE_TWO_MATRICES if is_probability else READ_TWICE
    if logits.dtype == torch.float64:
        read_twice = READ_TWICE_FLOAT64
    live_values = 1 + is_probability + weighs_classes + (options.softcap is not None)
    limits = Limits(
        live_values=live_values,
        # only for a gradient a row is kept, or read again
        max_tile_bytes=READ_ONCE.tile_bytes if dlogits is None else MAX_TILE_BYTES,
        min_tile_bytes=2 * MIN_TILE_BYTES,
        online=READ_ONCE if dlogits is None else read_twice,
        may_pack=True,
        cluster_cols=0 if dlogits is None else _cluster_cols(live_values, options),
    )
    results = () if dlogits is None else (dlogits,)
    if is_probability:
        return Rows(logits, target, *results, limits=limits)
    rows = Rows(logits, *results, limits=limits)
    rows.matrices.insert(1, rows.target_indices(target))
    return rows


def _cluster_cols(live_values: int, options: LossOptions) -> int:
    """Columns that a thread block of a cluster holds without spilling registers."""
    if live_values > 2:
        return CLUSTER_COLS // 2
    is_plain = live_values == 1 and options.label_smoothing == 0
    return 2 * CLUSTER_COLS if is_plain else CLUSTER_COLS


def _pair(number: float) -> FloatPair | None:
    """A float64 as a kernel takes it, or None for 0."""
    if number == 0:
        return None
    high = ctypes.c_float(number).value
    return FloatPair(high, number - high)
