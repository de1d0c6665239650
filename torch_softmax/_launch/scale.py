"""Launcher of the in-place scaling of a gradient."""

from typing import Any

from torch import Tensor

from torch_softmax._kernels.scale import scale_kernel
from torch_softmax._kernels.tiles import Matrix
from torch_softmax._kernels.tiling import MAX_LOOPING_PROGRAMS, READ_ONCE
from torch_softmax._launch.schedule import MAX_SCHEDULES, Limits, Rows, layout
from torch_softmax._launch.specialized import Launch

LIMITS = Limits(live_values=1, max_tile_bytes=READ_ONCE.tile_bytes)

# launches, and the arguments that do not change with the tensors of one layout
_plans: dict[tuple[Any, ...], tuple[Launch, tuple[int, ...], tuple[int, ...]]] = {}


def launch_scale_inplace(x: Tensor, factor: Tensor) -> None:
    """x *= factor."""
    if x.numel() == 0:
        return
    key = (x.device, layout(x), layout(factor))
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) == MAX_SCHEDULES:
            _plans.clear()
        plan = _plans[key] = _plan(x)
    launch, strides, sizes = plan
    launch(Matrix(x, *strides), factor, *sizes)


def _plan(x: Tensor) -> tuple[Launch, tuple[int, ...], tuple[int, ...]]:
    """The launch, the strides of the matrix and the sizes."""
    rows = Rows(x, limits=LIMITS)
    n_blocks = rows.schedule.row_blocks * rows.schedule.col_blocks
    launch = rows.launch_of(scale_kernel, grid=(min(n_blocks, MAX_LOOPING_PROGRAMS),))
    return launch, rows.matrices[0][1:], (rows.n_rows, rows.n_cols, n_blocks)
