"""The factor of a gradient that was formed before its factor was known."""

import triton
import triton.language as tl

from .rows import load_tile, row_places, store_tile, tile_columns


@triton.jit
def scale_kernel(
    x_ptr,
    factor_ptr,
    n_rows,
    n_cols,
    n_blocks,
    x_strides,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
):
    """x *= factor, and nothing is read where the factor is 1, as it is for most losses.

    So that then as good as nothing is started, few programs share all ``n_blocks`` blocks.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    factor = tl.load(factor_ptr).to(dtype)
    if factor != 1.0:
        col_blocks = tl.cdiv(n_cols + VECTOR - 1, BLOCK_COLS)
        for block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
            places = row_places(block // col_blocks, n_rows, BLOCK_ROWS, x_strides, VECTOR)
            start = block % col_blocks * BLOCK_COLS
            _, _, words = tile_columns(start, places, n_cols, BLOCK_COLS, VECTOR, ENDS)
            x = load_tile(x_ptr, x_strides, words, VECTOR).to(dtype)
            store_tile(x_ptr, x_strides, words, x * factor, VECTOR, ENDS)
