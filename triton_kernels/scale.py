"""The factor of a gradient that was formed before its factor was known."""

import triton
import triton.language as tl

from triton_kernels.rows import load_tile, row_places, store_tile, tile_columns


@triton.jit
def scale_kernel(
    x_ptr,
    factor_ptr,
    n_rows,
    n_cols,
    x_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """x *= factor, and nothing is read where the factor is 1, as it is for most losses."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        places = row_places(n_rows, BLOCK_ROWS, x_strides, VECTOR)
        start = tl.program_id(1) * BLOCK_COLS
        _, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR)
        x = load_tile(x_ptr, x_strides, words, VECTOR).to(factor.dtype)
        store_tile(x_ptr, x_strides, words, x * factor, VECTOR)
