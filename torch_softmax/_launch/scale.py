"""Launcher of the in-place scaling of a gradient."""

from torch import Tensor

from torch_softmax._kernels.scale import scale_kernel
from torch_softmax._kernels.tiling import MAX_LOOPING_PROGRAMS, READ_ONCE
from torch_softmax._launch.schedule import Limits, Rows

LIMITS = Limits(live_values=1, max_tile_bytes=READ_ONCE.tile_bytes)


def launch_scale_inplace(x: Tensor, factor: Tensor) -> None:
    """x *= factor."""
    if x.numel() == 0:
        return
    rows = Rows(x, limits=LIMITS)
    n_blocks = rows.schedule.row_blocks * rows.schedule.col_blocks
    grid = (min(n_blocks, MAX_LOOPING_PROGRAMS),)
    rows.launch(scale_kernel, *rows.matrices, factor, rows.n_rows, rows.n_cols, n_blocks, grid=grid)
