"""The choice of a program's tile, on the host: plain integers without Triton.

One rule gives three schedules. Short rows share a program (``block_rows > 1``), a longer row has a
program and a tile of its own (``block_rows == 1``), and a row that is longer than a tile is read
block by block (``block_cols < n_cols``). Where a GPU has clusters, a fourth one holds a longer row
in the tile of a cluster of thread blocks (``num_ctas > 1``).
"""

from collections.abc import Sequence
from typing import NamedTuple

# 128 threads with 64 bytes each: two 16-byte loads of bfloat16, converted to float32
MIN_TILE_BYTES = 8 * 1024
# a quarter of an SM's 256 KiB of registers: two programs share an SM, and one loads while the other
# computes. With one program per SM, whose tile fits a row of 32000 bfloat16, softmax reached 78 %
# of the copy's speed on an H200; with two that read rows of 65536 online, it reached 93 %
MAX_TILE_BYTES = 64 * 1024
# tile bytes per thread: 32 float32 elements, enough to amortize the work per row
THREAD_BYTES = 128
MIN_WARPS, MAX_WARPS = 4, 32
# from this many rows on, each thread reduces a whole row
MIN_ROWS_OF_THREADS = 32

# the widest access of a thread, and its elements of the narrowest dtype
VEC_BYTES = 16
MAX_VEC_SIZE = 8
# in shorter rows the head and tail, accessed one element at a time, outweigh the vectors
MIN_VECTORS = 16

# a tile of class-strided rows: two warps, 32 float32 elements per thread
STRIDED_ROWS = 512
STRIDED_BYTES = 8 * 1024

# each thread holds one whole packed row
MAX_PACKED_COLS = 32
PACKED_ROWS = 128

# a cluster: the columns that one of its thread blocks holds where two of them are to share an SM,
# the warps of a block, and the blocks that every GPU with clusters can start together
CLUSTER_COLS = 16 * 1024
CLUSTER_WARPS = 16
MAX_CTAS = 8
# shorter rows are read block by block at 93 % of the copy's speed on an H200
MIN_CLUSTER_COLS = 64 * 1024

# targets per step of a weight_sum_kernel program, and the maximum number of these programs: every
# program of the loss adds up their partial sums
WEIGHT_SUM_ROWS = 4096
MAX_WEIGHT_PARTIALS = 256

# largest grid of a kernel that loops over blocks: several programs per SM of the largest GPU
MAX_LOOPING_PROGRAMS = 1024


class OnlineTile(NamedTuple):
    """The tile of an online kernel: its bytes of registers and its warps."""

    tile_bytes: int
    num_warps: int


# several programs share an SM and hide each other's loads
READ_ONCE = OnlineTile(16 * 1024, 4)
# one or two programs fill an SM, so few rows at once compete for the L2 cache between their two
# reads: 45 % of rows of 128256 bfloat16 then came from the L2 cache on an H200
READ_TWICE = OnlineTile(64 * 1024, MAX_WARPS)
# the same number of elements for two matrices
READ_TWICE_TWO_MATRICES = OnlineTile(128 * 1024, MAX_WARPS)
# a float64 takes two registers: with more threads the kernels spill
READ_TWICE_FLOAT64 = OnlineTile(32 * 1024, MAX_WARPS // 4)


class Tiling(NamedTuple):
    """The size of a program's tile, in powers of two, its thread blocks, and the warps of each."""

    block_rows: int
    block_cols: int
    num_warps: int
    num_ctas: int = 1


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
        live_bytes: Bytes of live values per element of the tile.
        class_strided: The row stride is smaller than the class stride, so only a tile of many rows
            reads whole memory sectors.
        max_tile_bytes: Largest tile that holds whole rows, in bytes of registers.
        min_tile_bytes: Tile of several short rows, in bytes of registers.
        online: The tile for longer rows, which are read block by block.
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

    Each of 64 threads owns a vector of rows and 4 of their columns, so the sums of a row stay in
    one thread. A program reads its rows block by block; the L1 cache serves the second read.
    """
    block_rows = min(STRIDED_ROWS, next_power_of_2(n_rows))
    elements = max(STRIDED_BYTES // live_bytes, MAX_VEC_SIZE * 64)
    return Tiling(block_rows, min(block_cols, max(1, elements // block_rows)), 2)


def cluster_tiling(n_cols: int, max_block_cols: int) -> Tiling | None:
    """Choose the tile of a cluster that holds a row; None where the row is too short or too long.

    Args:
        n_cols: Columns of a row.
        max_block_cols: Columns that a thread block of 16 warps holds without spilling registers.
    """
    cols = next_power_of_2(n_cols)
    if not MIN_CLUSTER_COLS <= cols <= MAX_CTAS * max_block_cols:
        return None
    num_ctas = min(cols // min(CLUSTER_COLS, max_block_cols), MAX_CTAS)
    return Tiling(1, cols, CLUSTER_WARPS, num_ctas)


def packed_tiling(n_cols: int) -> Tiling:
    """Choose the tile for packed rows of at most MAX_PACKED_COLS columns."""
    return Tiling(PACKED_ROWS, next_power_of_2(n_cols), PACKED_ROWS // 32)


def n_partials(tiling: Tiling, element_bytes: int) -> int:
    """Number of partials of each row in a tile.

    In a tile of many rows one thread holds a whole row, which is one partial. Otherwise each
    16-byte vector is a partial.
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
    """Elements per access that the kernel aligns itself; 1 if it need not or cannot.

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
    """Whether some row begins or ends inside a vector of ``elements`` elements."""
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
