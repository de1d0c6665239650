"""Launcher of the factor of a gradient."""

from torch import Tensor

from torch_softmax._launch.start import Rows
from torch_softmax._rows import compute_dtype
from triton_kernels.scale import scale_kernel


def launch_scale_inplace(x: Tensor, factor: Tensor) -> None:
    """x *= factor."""
    if x.numel() == 0:
        return
    rows = Rows(x, held_values=1, whole_rows=False)
    (x_rows,) = rows.folded
    rows.start(
        scale_kernel,
        x_rows,
        factor.to(compute_dtype(x.dtype)),
        rows.n_rows,
        rows.n_cols,
        x_rows.stride(),
        col_blocks=rows.col_blocks,
    )
