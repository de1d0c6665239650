"""In-place scaling of a gradient that was computed before its factor was known."""

import triton
import triton.language as tl

from .arithmetic import compute_dtype
from .tiles import column_tile, load_tile, row_block, store_tile


@triton.jit
def scale_kernel(
    x,
    factor_ptr,
    n_rows,
    n_cols,
    n_blocks,
    TILE: tl.constexpr,
):
    """x *= factor; the kernel exits without reading x if the factor is 1, as for most losses.

    A small grid loops over ``n_blocks`` blocks, so the exit is nearly free.
    """
    dtype: tl.constexpr = compute_dtype(x.ptr.dtype.element_ty)
    factor = tl.load(factor_ptr).to(dtype)
    if factor != 1.0:
        col_blocks = tl.cdiv(n_cols + TILE.vec_size - 1, TILE.cols)
        for block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
            rows = row_block(block // col_blocks, n_rows, x, TILE)
            tile = column_tile(block % col_blocks * TILE.cols, rows, n_cols, TILE)
            value = load_tile(x, tile, TILE).to(dtype) * factor
            store_tile(x, tile, value, TILE)
