"""How much of a matrix one program takes: plain integers, decided before any kernel starts.

One rule gives three schedules. Short rows share a program (``block_rows > 1``), a longer row has a
program and a tile of its own (``block_rows == 1``), and a row that is longer than a tile is read
block by block (``block_cols < n_cols``).
"""

from collections.abc import Sequence
from typing import NamedTuple

# for each of 128 threads 64 bytes: 16 bytes of bfloat16 are loaded twice and held as float32
MIN_TILE_BYTES = 8 * 1024
# a quarter of an SM's 256 KiB of registers: two programs share an SM, and one loads while the other
# computes. With one program on an SM, which rows of 32000 bfloat16 then fit, softmax reached 78 %
# of the copy's speed on an H200; with two that read rows of 65536 online it reached 93 %
MAX_TILE_BYTES = 64 * 1024
# of a thread: 32 numbers of float32, enough to hide what it does once for a row
THREAD_BYTES = 128
MIN_WARPS, MAX_WARPS = 4, 32
# from this many rows on, each thread reduces a whole row
MIN_ROWS_OF_THREADS = 32

# the widest access of a thread, and its elements of the narrowest dtype
VEC_BYTES = 16
MAX_VEC_SIZE = 8
# in shorter rows the head and the tail, which move element by element, are too large a part
MIN_VECTORS = 16

# of class-strided rows a tile of two warps, 32 numbers for each thread
STRIDED_ROWS = 512
STRIDED_BYTES = 8 * 1024

# each thread holds one packed row with all its columns
MAX_PACKED_COLS = 32
PACKED_ROWS = 128

# targets whose weights a program adds at a time, and programs at most: every other program adds
# their partial sums
WEIGHT_SUM_ROWS = 4096
MAX_WEIGHT_PARTIALS = 256

# programs of a kernel that loops over blocks, for the largest GPU several to a multiprocessor
MAX_LOOPING_PROGRAMS = 1024


class OnlineTile(NamedTuple):
    """The tile in which rows longer than a tile are read: its registers, and its warps."""

    tile_bytes: int
    num_warps: int


# several programs share an SM and hide each other's loads
READ_ONCE = OnlineTile(16 * 1024, 4)
# for two reads one or two programs fill an SM, so that few rows at once wait in the L2 cache for
# their second read: 45 % of rows of 128256 bfloat16 then came from there on an H200
READ_TWICE = OnlineTile(64 * 1024, MAX_WARPS)
# as many elements of two matrices
READ_TWICE_TWO_MATRICES = OnlineTile(128 * 1024, MAX_WARPS)
# float64 takes two registers of a thread: with more threads the kernels spill
READ_TWICE_FLOAT64 = OnlineTile(32 * 1024, MAX_WARPS // 4)


class Tiling(NamedTuple):
    """The tile of one program, powers of two, and the warps that share it."""

    block_rows: int
    block_cols: int
    num_warps: int


def row_tiling(
    n_rows: int,
    n_cols: int,
    live_bytes: int,
    *,
    class_strided: bool,
    max_tile_bytes: int = MAX_TILE_BYTES,
    min_tile_bytes: int = MIN_TILE_BYTES,
    online: OnlineTile = READ_ONCE,
) -> Tiling:
    """Choose the tile for ``n_rows`` rows of ``n_cols`` columns.

    Args:
        n_rows: Rows with one stride between them, at least 1.
        n_cols: Columns of a row, at least 1.
        live_bytes: Bytes of registers that the kernel keeps for one element of its tile.
        class_strided: The row stride is smaller than the class stride, and only a tile of many rows
            reads whole memory sectors.
        max_tile_bytes: Registers for a tile that holds whole rows.
        min_tile_bytes: Registers of a tile of several short rows.
        online: The tile for longer rows.
    """
    live_bytes = next_power_of_2(live_bytes)
    block_cols = next_power_of_2(n_cols)
    if class_strided:
        return strided_tiling(n_rows, block_cols, live_bytes)
    if block_cols * live_bytes > max_tile_bytes:
        elements = max(online.tile_bytes // live_bytes, MAX_VEC_SIZE * 32 * online.num_warps)
        return Tiling(1, elements, online.num_warps)
    block_rows = min(max(1, min_tile_bytes // (block_cols * live_bytes)), next_power_of_2(n_rows))
    elements = block_rows * block_cols
    num_warps = min(elements * live_bytes // THREAD_BYTES, elements // MAX_VEC_SIZE) // 32
    return Tiling(block_rows, block_cols, min(max(num_warps, MIN_WARPS), MAX_WARPS))


def strided_tiling(n_rows: int, block_cols: int, live_bytes: int) -> Tiling:
    """Choose the tile for class-strided rows.

    Each of 64 threads has a vector of rows and 4 of their columns, and needs no other thread for
    its sums: a program reads its rows block by block, and the L1 cache serves the second read.
    """
    block_rows = min(STRIDED_ROWS, next_power_of_2(n_rows))
    elements = max(STRIDED_BYTES // live_bytes, MAX_VEC_SIZE * 64)
    return Tiling(block_rows, min(block_cols, max(1, elements // block_rows)), 2)


def packed_tiling(n_cols: int) -> Tiling:
    """Choose the tile for packed rows of at most MAX_PACKED_COLS columns."""
    return Tiling(PACKED_ROWS, next_power_of_2(n_cols), PACKED_ROWS // 32)


def n_partials(tiling: Tiling, element_bytes: int) -> int:
    """Partials of a row in one block of columns: parts of it that one thread holds.

    In a tile of many rows that is the row; else it is the vector that a thread loads at once.
    """
    if tiling.block_rows >= MIN_ROWS_OF_THREADS:
        return 1
    return max(1, tiling.block_cols * element_bytes // VEC_BYTES)


def vec_size(
    n_cols: int,
    strides: Sequence[tuple[int, ...]],
    addresses: Sequence[int],
    element_bytes: int,
) -> int:
    """Elements of an access that a kernel has to align, or 1 where it need not or cannot.

    Args:
        n_cols: Columns of a row.
        strides: For each matrix its strides (outer, row, class), in elements.
        addresses: For each matrix its address in memory.
        element_bytes: Bytes of the narrowest element.
    """
    elements = VEC_BYTES // element_bytes
    sizes = [n_cols, *(stride for matrix in strides for stride in matrix[:2])]
    # Triton infers 16-byte alignment from sizes divisible by 16
    if all(size % 16 == 0 for size in sizes):
        return 1
    if has_unaligned_rows(n_cols, strides, elements):
        longer_block = next_power_of_2(n_cols + elements - 1) > next_power_of_2(n_cols)
        if longer_block or n_cols < MIN_VECTORS * elements:
            return 1
    heads = {tuple(stride % elements for stride in matrix[:2]) for matrix in strides}
    aligned = all(address % VEC_BYTES == 0 for address in addresses)
    contiguous = all(matrix[2] == 1 for matrix in strides)
    return elements if len(heads) == 1 and aligned and contiguous else 1


def has_unaligned_rows(n_cols: int, strides: Sequence[tuple[int, ...]], elements: int) -> bool:
    """Whether some row begins or ends inside a vector of so many elements."""
    return any(
        size % elements
        for size in (n_cols, *(stride for matrix in strides for stride in matrix[:2]))
    )


def cdiv(numerator: int, denominator: int) -> int:
    """Quotient rounded up."""
    return -(-numerator // denominator)


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
