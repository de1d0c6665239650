"""Device functions that every kernel shares: where a program's tile lies, and the log-sum-exp.

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


@triton.jit
def finite_shift(largest):
    """What to subtract before exp: the maximum, or 0 while all is -inf, as -inf - -inf is NaN."""
    return tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def fold_block(x, largest, total):
    """Take a block into each row's running maximum and sum(exp(x - maximum)): online softmax.

    Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
    """
    new_largest = tl.maximum(largest, tl.max(x, axis=1))
    shift = finite_shift(new_largest)
    total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
    return new_largest, total
