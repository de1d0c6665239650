"""The factor of a gradient that was formed before its factor was known."""

import triton
import triton.language as tl

from triton_kernels.rows import program_rows, tile_offsets


@triton.jit
def scale_kernel(
    x_ptr,
    factor_ptr,
    n_rows,
    n_cols,
    x_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """x *= factor, and nothing is read where the factor is 1, as it is for most losses."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        outer, rows = program_rows(n_rows, BLOCK_ROWS)
        cols = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
        in_tile = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
        x_ptrs = x_ptr + tile_offsets(outer, rows, cols, x_strides)
        x = tl.load(x_ptrs, mask=in_tile, other=0.0).to(factor.dtype)
        tl.store(x_ptrs, x * factor, mask=in_tile)
