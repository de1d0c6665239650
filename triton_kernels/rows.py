"""Device functions that every kernel shares: where a program's tile lies.

A tensor is three axes here, (outer, row, column), with a stride in elements for each; the columns
are the classes. That is every layout in which the class axis lies somewhere inside a tensor: a
matrix has one outer index, images with classes on axis 1 have one per image.
"""

import triton
import triton.language as tl


@triton.jit
def program_rows(n_rows, BLOCK_ROWS: tl.constexpr):
    """Outer index and row indices of this program, int64: times a stride they pass 2**31."""
    blocks = tl.cdiv(n_rows, BLOCK_ROWS)
    program = tl.program_id(0).to(tl.int64)
    rows = (program % blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return program // blocks, rows


@triton.jit
def tile_offsets(outer, rows, cols, strides):
    """Offsets of a tile from the start of its tensor."""
    # a class axis with gaps passes 2**31 too
    col_offsets = cols.to(tl.int64) * strides[2]
    return outer * strides[0] + (rows * strides[1])[:, None] + col_offsets[None, :]
