"""How much of a matrix one program takes: plain integers, decided before any kernel starts.

Three schedules come out of one rule. Short rows share a program (``block_rows > 1``), a longer row
has a program and a block to itself (``block_rows == 1``), and a row that no block holds is walked
in a loop (``block_cols < n_cols``).
"""

from collections.abc import Sequence
from typing import NamedTuple

# for each of 128 threads 64 bytes: 16 bytes of bfloat16 are loaded twice and held as float32
MIN_TILE_BYTES = 8 * 1024
# a quarter of an SM's 256 KiB of registers, so that two programs share it, and one loads while the
# other computes. With one on an SM, that holds rows of 32000 bfloat16, softmax had 78 % of the
# copy's speed on an H200; with two that walk rows of 65536 it had 93 %
MAX_TILE_BYTES = 64 * 1024
# of a thread: 32 numbers of float32, enough to hide what it does once for a row
THREAD_BYTES = 128
MIN_WARPS, MAX_WARPS = 4, 32
# from so many rows on the threads of a tile lie along them, and fold whole rows by themselves
MIN_ROWS_OF_THREADS = 32

# the widest access of a thread, and what it moves of the narrowest elements
WORD_BYTES = 16
WORD_ELEMENTS = 8
# of shorter rows the two ends, which are moved element by element, are too large a part
MIN_WORDS = 16

# of adjacent rows a tile of two warps, 32 numbers for each thread
ADJACENT_ROWS = 512
ADJACENT_BYTES = 8 * 1024

# of packed rows a thread holds one each, with all its columns
MAX_PACKED_COLS = 32
PACKED_ROWS = 128

# targets that a program counts at a time
COUNTED_ROWS = 4096
# programs that count, whose sums every other program adds up: few, and for many rows more
FEW_COUNTS, MAX_COUNTS = 32, 512

# programs that share more blocks than these, for the largest GPU several to a multiprocessor
MAX_SHARED_PROGRAMS = 1024


class Walk(NamedTuple):
    """A block of a row that no block holds: the registers of one program, and its warps."""

    tile_bytes: int
    num_warps: int


# several programs share an SM and hide each other's loads
WALK = Walk(16 * 1024, 4)
# for two walks one or two programs fill an SM, so that few rows at once wait in the L2 cache until
# they are read again: of rows of 128256 bfloat16 45 % then came from there on an H200
WALK_TWICE = Walk(64 * 1024, MAX_WARPS)
# of two matrices as many elements; of float64, which takes two registers, half the threads
WALK_BACKWARD = Walk(128 * 1024, MAX_WARPS)
WALK_FLOAT64 = Walk(64 * 1024, MAX_WARPS // 2)


class Tiling(NamedTuple):
    """The tile of one program, powers of two, and the warps that share it."""

    block_rows: int
    block_cols: int
    num_warps: int


def row_tiling(
    n_rows: int,
    n_cols: int,
    held_bytes: int,
    *,
    adjacent_rows: bool,
    max_tile_bytes: int = MAX_TILE_BYTES,
    min_tile_bytes: int = MIN_TILE_BYTES,
    walk: Walk = WALK,
) -> Tiling:
    """Choose the tile for ``n_rows`` rows of ``n_cols`` columns.

    Args:
        n_rows: Rows that lie side by side, at least 1.
        n_cols: Columns of a row, at least 1.
        held_bytes: Bytes of registers that the kernel holds for one element of its tile.
        adjacent_rows: Neighbours in memory are rows, not columns: the class axis has gaps, and
            only a tile of many rows reads whole memory sectors.
        max_tile_bytes: Registers for a tile that holds whole rows.
        min_tile_bytes: Registers of the tile in which short rows are together.
        walk: How longer rows are walked.
    """
    held_bytes = next_power_of_2(held_bytes)
    block_cols = next_power_of_2(n_cols)
    if adjacent_rows:
        return adjacent_tiling(n_rows, block_cols, held_bytes)
    if block_cols * held_bytes > max_tile_bytes:
        elements = max(walk.tile_bytes // held_bytes, WORD_ELEMENTS * 32 * walk.num_warps)
        return Tiling(1, elements, walk.num_warps)
    block_rows = min(max(1, min_tile_bytes // (block_cols * held_bytes)), next_power_of_2(n_rows))
    elements = block_rows * block_cols
    num_warps = min(elements * held_bytes // THREAD_BYTES, elements // WORD_ELEMENTS) // 32
    return Tiling(block_rows, block_cols, min(max(num_warps, MIN_WARPS), MAX_WARPS))


def adjacent_tiling(n_rows: int, block_cols: int, held_bytes: int) -> Tiling:
    """Choose the tile for rows that are neighbours in memory.

    Each of 64 threads has a word of rows and 4 of their columns, so that none needs another for its
    sums: the rows of one program are walked, and found in the L1 cache when they are read again.
    """
    block_rows = min(ADJACENT_ROWS, next_power_of_2(n_rows))
    elements = max(ADJACENT_BYTES // held_bytes, WORD_ELEMENTS * 64)
    return Tiling(block_rows, min(block_cols, max(1, elements // block_rows)), 2)


def packed_tiling(n_cols: int) -> Tiling:
    """Choose the tile for packed rows of at most MAX_PACKED_COLS columns."""
    return Tiling(PACKED_ROWS, next_power_of_2(n_cols), PACKED_ROWS // 32)


def fold_lanes(tiling: Tiling, element_bytes: int) -> int:
    """Parts of a block of columns, each of which one thread holds.

    In a tile of many rows that is a row; else it is the word that a thread loads at once.
    """
    if tiling.block_rows >= MIN_ROWS_OF_THREADS:
        return 1
    return max(1, tiling.block_cols * element_bytes // WORD_BYTES)


def word_elements(
    n_cols: int,
    strides: Sequence[tuple[int, ...]],
    addresses: Sequence[int],
    element_bytes: int,
) -> int:
    """Elements in the words in which a kernel has to move rows, or 1 where it need not or cannot.

    Args:
        n_cols: Columns of a row.
        strides: For each matrix its strides (outer, row, column), in elements.
        addresses: For each matrix its address in memory.
        element_bytes: Bytes of the narrowest element.
    """
    elements = WORD_BYTES // element_bytes
    sizes = [n_cols, *(stride for matrix in strides for stride in matrix[:2])]
    # multiples of 16 Triton finds out by itself
    if all(size % 16 == 0 for size in sizes):
        return 1
    if has_ends(n_cols, strides, elements):
        longer_block = next_power_of_2(n_cols + elements - 1) > next_power_of_2(n_cols)
        if longer_block or n_cols < MIN_WORDS * elements:
            return 1
    heads = {tuple(stride % elements for stride in matrix[:2]) for matrix in strides}
    in_words = all(address % WORD_BYTES == 0 for address in addresses)
    side_by_side = all(matrix[2] == 1 for matrix in strides)
    return elements if len(heads) == 1 and in_words and side_by_side else 1


def has_ends(n_cols: int, strides: Sequence[tuple[int, ...]], elements: int) -> bool:
    """Whether some row begins or ends inside a word of so many elements."""
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
