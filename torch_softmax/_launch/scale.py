"""Launcher of the factor of a gradient."""

from torch import Tensor

from torch_softmax._kernels.scale import scale_kernel
from torch_softmax._kernels.tiling import MAX_SHARED_PROGRAMS, WALK
from torch_softmax._launch.start import Rows


def launch_scale_inplace(x: Tensor, factor: Tensor) -> None:
    """x *= factor."""
    if x.numel() == 0:
        return
    rows = Rows(x, held_values=1, max_tile_bytes=WALK.tile_bytes)
    (x_rows,) = rows.folded
    n_blocks = rows.row_blocks * rows.col_blocks
    rows.start(
        scale_kernel,
        x_rows,
        factor,
        rows.n_rows,
        rows.n_cols,
        n_blocks,
        x_rows.stride(),
        grid=(min(n_blocks, MAX_SHARED_PROGRAMS),),
    )
