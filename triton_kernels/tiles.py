"""Device functions of all kernels: the rows and the tile of a program, loads and stores.

A tensor is a :class:`Matrix` of three axes, (outer, row, class). Any layout with one class axis
has this form: a matrix has one outer index, images with classes on axis 1 have one per image.

A vectorized access moves VEC_BYTES = 16 bytes. Rows of 50257 bfloat16 do not start at multiples of
16 bytes, so a tile starts at the last multiple before its row, ``head`` elements earlier: element
``position`` of a tile is column ``position - head``. A load also reads the elements
of neighbouring rows in the first and last vector of a row. A store writes only the row's own
elements, its head and tail one at a time. All matrices of a kernel have the same heads. With
``vec_size`` 1 positions are columns.

A tile of ``num_ctas`` > 1 belongs to a cluster of thread blocks. Triton's reductions reach across
them; ``tl.debug_barrier`` does not.

Rows of few classes without gaps are ``packed``: a program loads or stores them as one contiguous
block and transposes it, so each thread holds a whole row.

``EVICTION`` tells the L2 cache which elements will be read again.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

# from this many rows per tile on, rows share vectors, and a mask per row would split them
MIN_SHARED_ROWS = tl.constexpr(32)
# columns of a stripe: one 16-byte vector of bfloat16 for each of 512 threads
STRIPE_COLS = tl.constexpr(4096)


class Matrix(NamedTuple):
    """A tensor's pointer and strides, in elements."""

    ptr: Any
    outer_stride: Any
    row_stride: Any
    class_stride: Any


class TileShape(NamedTuple):
    """The shape and layout of a tile, known at compile time; the sizes are powers of two."""

    rows: int
    cols: int
    vec_size: int
    unaligned_rows: bool
    packed: bool
    num_ctas: int


class Rows(NamedTuple):
    """The rows of a program: outer index, row indices, number and mask of existing rows, heads."""

    outer: Any
    index: Any
    n_exist: Any
    exist: Any
    head: Any


class Tile(NamedTuple):
    """Columns of a program's rows, and masks: inside the row, vectors to load, vectors to store."""

    rows: Rows
    cols: Any
    positions: Any
    in_row: Any
    load_mask: Any
    store_mask: Any


@triton.jit
def row_block(block, n_rows, matrix, TILE: tl.constexpr):
    """The rows of a block of TILE.rows."""
    blocks = tl.cdiv(n_rows, TILE.rows)
    # int64: rows * stride may exceed 2**31
    block = block.to(tl.int64)
    outer = block // blocks
    start = (block % blocks) * TILE.rows
    index = start + tl.arange(0, TILE.rows)
    n_exist = tl.minimum(n_rows - start, TILE.rows).to(tl.int32)
    head = ((outer * matrix.outer_stride + index * matrix.row_stride) % TILE.vec_size).to(tl.int32)
    return Rows(outer, index, n_exist, index < n_rows, head)


@triton.jit
def column_tile(start, rows, n_cols, TILE: tl.constexpr):
    """The tile of ``rows`` that begins at position ``start``."""
    exist = rows.exist[:, None]
    positions = (start + tile_positions(TILE))[None, :]
    # shape (1, cols), like class weights: it broadcasts over the rows
    cols = positions
    # a bound divisible by vec_size tells the compiler that the mask splits no vector
    in_row = exist & (positions < n_cols // TILE.vec_size * TILE.vec_size)
    load_mask = in_row
    store_mask = in_row
    if TILE.packed:
        in_row = exist & (cols < n_cols)
    elif TILE.unaligned_rows:
        head = rows.head[:, None]
        end = head + n_cols
        cols = positions - head
        in_row = exist & (positions >= head) & (positions < end)
        load_mask = exist & (positions < tl.cdiv(end, TILE.vec_size) * TILE.vec_size)
        first_vector = tl.cdiv(head, TILE.vec_size) * TILE.vec_size
        end_of_vectors = end // TILE.vec_size * TILE.vec_size
        store_mask = exist & (positions >= first_vector) & (positions < end_of_vectors)
    return Tile(rows, cols, positions, in_row, load_mask, store_mask)


@triton.jit
def tile_positions(TILE: tl.constexpr):
    """Position of each column of a tile: the thread blocks of a cluster take stripes in turn.

    Each block owns a contiguous part of the tile. Were the positions contiguous too, the last
    blocks would have nothing to do in a row that is shorter than the tile.
    """
    positions = tl.arange(0, TILE.cols)
    if TILE.num_ctas > 1:
        block = positions // (TILE.cols // TILE.num_ctas)
        element = positions % (TILE.cols // TILE.num_ctas)
        stripe = element // STRIPE_COLS * TILE.num_ctas + block
        positions = stripe * STRIPE_COLS + element % STRIPE_COLS
        # Triton does not infer that a stripe is contiguous
        positions = tl.max_contiguous(tl.multiple_of(positions, STRIPE_COLS), STRIPE_COLS)
    return positions


@triton.jit
def tile_offsets(matrix, tile, TILE: tl.constexpr):
    """Offsets of a tile's elements from the start of its matrix."""
    row_start = tile.rows.outer * matrix.outer_stride + tile.rows.index * matrix.row_stride
    row_start = row_start // TILE.vec_size * TILE.vec_size
    # int64: columns * class stride may exceed 2**31 too
    return row_start[:, None] + tile.positions.to(tl.int64) * matrix.class_stride


@triton.jit
def load_tile(
    matrix,
    tile,
    TILE: tl.constexpr,
    EVICTION: tl.constexpr = None,
    needed_rows=None,
    OTHER: tl.constexpr = 0.0,
):
    """Load a tile: OTHER where the mask is False, arbitrary values outside a row."""
    if TILE.packed:
        x = load_packed_tile(matrix, tile, TILE)
    else:
        mask = tile.load_mask
        if needed_rows is not None:
            mask = mask & needed_rows[:, None]
        ptrs = matrix.ptr + tile_offsets(matrix, tile, TILE)
        x = tl.load(ptrs, mask=mask, other=OTHER, eviction_policy=EVICTION)
    return x


@triton.jit
def store_tile(matrix, tile, value, TILE: tl.constexpr, EVICTION: tl.constexpr = None):
    """Write the elements of a tile that are inside their row."""
    if TILE.packed:
        store_packed_tile(matrix, tile, value, TILE)
    else:
        ptrs = matrix.ptr + tile_offsets(matrix, tile, TILE)
        tl.store(ptrs, value, mask=tile.store_mask, eviction_policy=EVICTION)
        if TILE.unaligned_rows:
            # the head and tail share their vectors with the neighbouring rows
            is_head_or_tail = tile.in_row & ~tile.store_mask
            tl.store(ptrs, value, mask=is_head_or_tail, eviction_policy=EVICTION)


@triton.jit
def load_packed_tile(matrix, tile, TILE: tl.constexpr):
    """Load packed rows as one contiguous block; values outside a row are arbitrary."""
    # packed rows have no gaps, so the row stride is the number of columns
    n_cols = matrix.row_stride
    element = tl.arange(0, TILE.rows * TILE.cols)
    n_elements = tile.rows.n_exist * n_cols
    # a bound divisible by vec_size tells the compiler that the mask splits no vector
    mask = element < tl.cdiv(n_elements, TILE.vec_size) * TILE.vec_size
    block_ptr = matrix.ptr + tl.program_id(0).to(tl.int64) * TILE.rows * n_cols
    block = tl.load(block_ptr + element, mask=mask, other=0.0)
    cols = tl.arange(0, TILE.cols)[:, None]
    source = tl.arange(0, TILE.rows)[None, :] * n_cols + tl.minimum(cols, n_cols - 1)
    block = tl.gather(block, tl.reshape(source, (TILE.rows * TILE.cols,)), 0)
    return tl.trans(tl.reshape(block, (TILE.cols, TILE.rows)))


@triton.jit
def store_packed_tile(matrix, tile, value, TILE: tl.constexpr):
    """Store packed rows as one contiguous block."""
    n_cols = matrix.row_stride
    element = tl.arange(0, TILE.rows * TILE.cols)
    # element // n_cols without a division, exact below 2**20 / n_cols elements
    row = element * tl.cdiv(2**20, n_cols) >> 20
    source = (element - row * n_cols) * TILE.rows + row
    value = tl.reshape(tl.trans(value.to(matrix.ptr.dtype.element_ty)), (TILE.rows * TILE.cols,))
    block = tl.gather(value, source, 0)
    n_elements = tile.rows.n_exist * n_cols
    end_of_vectors = n_elements // TILE.vec_size * TILE.vec_size
    ptrs = matrix.ptr + tl.program_id(0).to(tl.int64) * TILE.rows * n_cols + element
    tl.store(ptrs, block, mask=element < end_of_vectors)
    if end_of_vectors < n_elements:
        tl.store(ptrs, block, mask=(element >= end_of_vectors) & (element < n_elements))


@triton.jit
def load_classes(ptr, cols, n_cols):
    """Load a vector with one entry per class, 0 outside the row."""
    in_row = (cols >= 0) & (cols < n_cols)
    # not other=0.0: Triton 3.6 fails to compile a sum of plain loads whose result is used twice
    return tl.where(in_row, tl.load(ptr + cols, mask=in_row), 0.0)
