"""How much of a matrix one program takes: plain integers, decided before any kernel starts.

Three schedules come out of one rule. Short rows share a program (``block_rows > 1``), a longer row
has a program and a block to itself (``block_rows == 1``), and a row that no block holds is walked
in a loop (``block_cols < n_cols``).
"""

from typing import NamedTuple

# for each of 128 threads 64 bytes: 16 bytes of bfloat16 are loaded twice and held as float32
MIN_TILE_BYTES = 8 * 1024
# half of an SM's 256 KiB of registers, so that the other half is left for addresses and results
MAX_TILE_BYTES = 128 * 1024
# a block of a walked row: several programs share an SM and hide each other's loads. A row that is
# walked twice has larger ones, so that one or two programs fill an SM, and the L2 cache holds their
# rows until they come back
WALK_TILE_BYTES = 32 * 1024
# neighbouring rows make up 64-byte memory sectors where the class axis itself has gaps
MIN_ADJACENT_ROWS = 32

# the widest access of a thread
WORD_BYTES = 16
# of shorter rows the two ends, which are moved element by element, are too large a part
MIN_WORDS = 16


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
    walk_tile_bytes: int = WALK_TILE_BYTES,
) -> Tiling:
    """Choose the tile for ``n_rows`` rows of ``n_cols`` columns.

    Args:
        n_rows: Rows that lie side by side, at least 1.
        n_cols: Columns of a row, at least 1.
        held_bytes: Bytes of registers that the kernel holds for one element of its tile.
        adjacent_rows: Neighbours in memory are rows, not columns: the class axis has gaps, and
            only a tile of many rows reads whole memory sectors.
        max_tile_bytes: Registers for a tile that holds whole rows.
        walk_tile_bytes: Registers for a block of a longer row.
    """
    held_bytes = next_power_of_2(held_bytes)
    wanted_rows = MIN_ADJACENT_ROWS if adjacent_rows else 1
    block_cols = next_power_of_2(n_cols)
    if wanted_rows * block_cols * held_bytes > max_tile_bytes:
        # adjacent rows are many at once anyway, and their offsets take registers of their own
        walk_tile_bytes = WALK_TILE_BYTES if adjacent_rows else walk_tile_bytes
        block_cols = walk_tile_bytes // (wanted_rows * held_bytes)
    block_rows = max(wanted_rows, MIN_TILE_BYTES // (block_cols * held_bytes))
    block_rows = min(block_rows, next_power_of_2(n_rows))
    return Tiling(block_rows, block_cols, warps(block_rows * block_cols, held_bytes))


def warps(elements: int, held_bytes: int) -> int:
    """Warps for a tile: 128 bytes and 8 elements a thread, at least 4 warps and at most 16."""
    # 8 bfloat16 are a word of 16 bytes
    return min(max(min(elements * held_bytes // 4096, elements // 256), 4), 16)


def word_elements(
    n_cols: int, strides: list[tuple[int, ...]], addresses: list[int], element_bytes: int
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
    aligned = all(size % 16 == 0 for size in sizes)
    longer_block = next_power_of_2(n_cols + elements - 1) > next_power_of_2(n_cols)
    if aligned or longer_block or n_cols < MIN_WORDS * elements:
        return 1
    heads = {tuple(stride % elements for stride in matrix[:2]) for matrix in strides}
    in_words = all(address % WORD_BYTES == 0 for address in addresses)
    side_by_side = all(matrix[2] == 1 for matrix in strides)
    return elements if len(heads) == 1 and in_words and side_by_side else 1


def cdiv(numerator: int, denominator: int) -> int:
    """Quotient rounded up."""
    return -(-numerator // denominator)


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
