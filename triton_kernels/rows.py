"""Device functions that every kernel shares: where a program's tile lies, and how it is moved.

A tensor is three axes here, (outer, row, column), with a stride in elements for each; the columns
are the classes. That is every layout in which the class axis lies somewhere inside a tensor: a
matrix has one outer index, images with classes on axis 1 have one per image.

Memory moves 16 bytes at a time where a thread asks for whole words of it, but rows need not begin
with one: rows of 50257 bfloat16 do not. So a tile has lanes, and lane 0 is the first element of the
word in which the row begins: column = lane - head. VECTOR is the number of elements in a word,
whose heads are the same in all matrices of a kernel; with VECTOR = 1 lanes are columns. Without
ENDS rows are whole words, which Triton finds out by itself where they are 16 elements and more. A
load may take elements beside the row, never words without an element of it; a store takes none.

A kernel that walks rows twice tells the L2 cache by EVICTION what it will read again.
"""

import triton
import triton.language as tl


@triton.jit
def block_rows(block, n_rows, BLOCK_ROWS: tl.constexpr):
    """Outer index and row indices of a block, int64: times a stride they pass 2**31."""
    blocks = tl.cdiv(n_rows, BLOCK_ROWS)
    block = block.to(tl.int64)
    rows = (block % blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return block // blocks, rows


@triton.jit
def row_places(block, n_rows, BLOCK_ROWS: tl.constexpr, strides, VECTOR: tl.constexpr):
    """Where a block's rows lie: outer index, rows, and how much of a word is before each."""
    outer, rows = block_rows(block, n_rows, BLOCK_ROWS)
    heads = ((outer * strides[0] + rows * strides[1]) % VECTOR).to(tl.int32)
    return outer, rows, heads, rows < n_rows


@triton.jit
def tile_columns(
    start, places, n_cols, BLOCK_COLS: tl.constexpr, VECTOR: tl.constexpr, ENDS: tl.constexpr
):
    """Columns of the tile from a lane on, which of them exist, and their words, for a move."""
    outer, rows, heads, in_rows = places
    in_rows = in_rows[:, None]
    lanes = (start + tl.arange(0, BLOCK_COLS))[None, :]
    # one row of columns for all rows, as class weights are
    cols = lanes
    # bounds that are multiples of a word tell the compiler that the masks divide none
    in_tile = in_rows & (lanes < n_cols // VECTOR * VECTOR)
    touched = in_tile
    whole = in_tile
    if ENDS:
        head = heads[:, None]
        end = head + n_cols
        cols = lanes - head
        in_tile = in_rows & (lanes >= head) & (lanes < end)
        touched = in_rows & (lanes < tl.cdiv(end, VECTOR) * VECTOR)
        first_whole = tl.cdiv(head, VECTOR) * VECTOR
        whole = in_rows & (lanes >= first_whole) & (lanes < end // VECTOR * VECTOR)
    return cols, in_tile, (outer, rows, lanes, in_tile, touched, whole)


@triton.jit
def tile_offsets(outer, rows, lanes, strides, VECTOR: tl.constexpr):
    """Offsets of a tile from the start of its tensor."""
    words = (outer * strides[0] + rows * strides[1]) // VECTOR * VECTOR
    # a class axis with gaps passes 2**31 too
    return words[:, None] + lanes.to(tl.int64) * strides[2]


@triton.jit
def load_tile(
    ptr,
    strides,
    words,
    VECTOR: tl.constexpr,
    EVICTION: tl.constexpr = None,
    wanted_rows=None,
    OTHER: tl.constexpr = 0.0,
):
    """Elements of a tile, OTHER in rows and words that are not there, anything beside a row."""
    outer, rows, lanes, _, touched, _ = words
    if wanted_rows is not None:
        touched = touched & wanted_rows[:, None]
    offsets = tile_offsets(outer, rows, lanes, strides, VECTOR)
    return tl.load(ptr + offsets, mask=touched, other=OTHER, eviction_policy=EVICTION)


@triton.jit
def store_tile(
    ptr,
    strides,
    words,
    value,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    EVICTION: tl.constexpr = None,
):
    """Write the elements of a tile that exist."""
    outer, rows, lanes, in_tile, _, whole = words
    ptrs = ptr + tile_offsets(outer, rows, lanes, strides, VECTOR)
    tl.store(ptrs, value, mask=whole, eviction_policy=EVICTION)
    if ENDS:
        # which share their words with the row's neighbours
        tl.store(ptrs, value, mask=in_tile & ~whole, eviction_policy=EVICTION)


@triton.jit
def load_columns(ptr, cols, n_cols):
    """A vector with one entry for each column, 0 beside the row."""
    in_row = (cols >= 0) & (cols < n_cols)
    # not other=0.0: Triton 3.6 fails to compile a sum of mere loads whose result is used twice
    return tl.where(in_row, tl.load(ptr + cols, mask=in_row), 0.0)


@triton.jit
def load_targets(ptr, strides, outer, rows, target, is_class):
    """One element of each row, NaN where its column is no class."""
    offsets = outer * strides[0] + rows * strides[1] + target * strides[2]
    return tl.load(ptr + offsets, mask=is_class, other=float("nan"))
