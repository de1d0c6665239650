"""Division of tensors into blocks of rows that fit the cache."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from torch_softmax._layout import collapse_batch_dims

# 4 MiB of float32, which fits the third-level cache together with the block's input. The fastest of
# 2**16 to 2**22 on one core and on two, for 60000 x 10, 8192 x 1000, 1024 x 32000 and
# 8 x 21 x 256 x 256
BLOCK_ELEMENTS = 2**20


def fits_a_block(matrix: Tensor) -> bool:
    """Whether all rows fit one block; False for no rows."""
    return 0 < matrix.numel() <= BLOCK_ELEMENTS


def row_blocks(matrix: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Blocks of rows of ``matrix`` with the same rows of ``others``, as views."""
    if fits_a_block(matrix):
        # no views: for small tensors they would take most of the time
        yield (matrix, *others)
        return
    sizes = collapse_batch_dims(matrix) or (1, matrix.shape[:-1].numel())
    batch_dim = matrix.dim() - 1
    tensors = [
        None if t is None else t.reshape(*sizes, *t.shape[batch_dim:]) for t in (matrix, *others)
    ]
    rows_in_block = max(1, BLOCK_ELEMENTS // max(1, matrix.shape[-1]))
    outer_in_block = max(1, rows_in_block // max(1, sizes[1]))
    for outer in range(0, sizes[0], outer_in_block):
        for row in range(0, sizes[1], rows_in_block):
            yield tuple(
                None if t is None else t[outer : outer + outer_in_block, row : row + rows_in_block]
                for t in tensors
            )
