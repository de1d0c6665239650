"""Start a kernel over the rows of tensors."""

import contextlib
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_softmax._kernels.tiling import (
    MAX_PACKED_COLS,
    MAX_TILE_BYTES,
    MIN_TILE_BYTES,
    WALK,
    WORD_BYTES,
    Tiling,
    Walk,
    cdiv,
    fold_lanes,
    has_ends,
    packed_tiling,
    row_tiling,
    word_elements,
)
from torch_softmax._layout import collapse_batch_dims

# what `kernel[grid]` returns
Kernel = Any


class Schedule(NamedTuple):
    """How a kernel takes rows: its tile, and the words in which they are moved."""

    tiling: Tiling
    vector: int  # elements in a word
    has_ends: bool
    is_packed: bool


# what it decides costs as much as a launch
@functools.lru_cache(maxsize=4096)
def schedule(
    folds: tuple[int, int],
    n_cols: int,
    strides: tuple[tuple[int, ...], ...],
    addresses: tuple[int, ...],
    element_bytes: tuple[int, ...],
    held_values: int,
    max_tile_bytes: int,
    min_tile_bytes: int,
    walk: Walk,
    may_be_packed: bool,
) -> Schedule:
    """The schedule for matrices of such sizes, strides and addresses within a word."""
    is_packed = (
        may_be_packed
        and n_cols <= MAX_PACKED_COLS
        and folds[0] == 1
        and all(stride[1:] == (n_cols, 1) for stride in strides)
        and not any(addresses)
    )
    if is_packed:
        return Schedule(packed_tiling(n_cols), WORD_BYTES // min(element_bytes), True, True)
    vector = word_elements(n_cols, strides, addresses, min(element_bytes))
    with_ends = has_ends(n_cols, strides, vector)
    _, row_stride, col_stride = strides[0]
    tiling = row_tiling(
        folds[1],
        n_cols + (vector - 1 if with_ends else 0),
        held_values * max(4, element_bytes[0]),
        adjacent_rows=0 < row_stride < col_stride,
        # the masks of the rows' ends take registers too
        max_tile_bytes=max_tile_bytes // (2 if with_ends else 1),
        min_tile_bytes=min_tile_bytes,
        walk=walk,
    )
    return Schedule(tiling, vector, with_ends, False)


class Rows:
    """How the kernels see tensors: (outer, row, column), and the tile of one program."""

    def __init__(
        self,
        *matrices: Tensor,
        held_values: int,
        max_tile_bytes: int = MAX_TILE_BYTES,
        min_tile_bytes: int = MIN_TILE_BYTES,
        walk: Walk = WALK,
        may_be_packed: bool = False,
    ) -> None:
        """Fold ``matrices`` for a kernel that holds ``held_values`` numbers for each element.

        The other numbers are those of ``row_tiling``. Rows of few classes that lie without gaps are
        packed, where there is a kernel for them.
        """
        matrix = matrices[0]
        self.folds = collapse_batch_dims(matrix) or (1, matrix.shape[:-1].numel())
        self.n_rows, self.n_cols = self.folds[1], matrix.shape[-1]
        self.device = matrix.device
        # views wherever they exist
        self.folded = [matrix.reshape(*self.folds, self.n_cols) for matrix in matrices]
        self.tiling, self.vector, self.has_ends, self.is_packed = schedule(
            self.folds,
            self.n_cols,
            tuple(folded.stride() for folded in self.folded),
            tuple(folded.data_ptr() % WORD_BYTES for folded in self.folded),
            tuple(matrix.element_size() for matrix in matrices),
            held_values,
            max_tile_bytes,
            min_tile_bytes,
            walk,
            may_be_packed,
        )

    @property
    def n_lanes(self) -> int:
        """Columns of a row, and what may lie before them in their first word."""
        return self.n_cols + (self.vector - 1 if self.has_ends else 0)

    @property
    def row_blocks(self) -> int:
        """Programs that cover all rows."""
        return self.folds[0] * cdiv(self.n_rows, self.tiling.block_rows)

    @property
    def col_blocks(self) -> int:
        """Blocks of columns that cover a row; more than one where no block holds it."""
        return cdiv(self.n_lanes, self.tiling.block_cols)

    @property
    def lanes(self) -> int:
        """Parts of a block of columns that a thread folds by itself."""
        return fold_lanes(self.tiling, self.folded[0].element_size())

    def start(
        self, kernel: Kernel, *args: Any, grid: tuple[int, ...] | None = None, **constexprs: Any
    ) -> None:
        """Start ``kernel`` on the device where the rows lie, one program for each block of them."""
        start(
            kernel,
            grid or (self.row_blocks, 1),
            self.device,
            *args,
            BLOCK_ROWS=self.tiling.block_rows,
            BLOCK_COLS=self.tiling.block_cols,
            VECTOR=self.vector,
            ENDS=self.has_ends,
            num_warps=self.tiling.num_warps,
            **constexprs,
        )


def start(
    kernel: Kernel, grid: tuple[int, ...], device: torch.device, *args: Any, **options: Any
) -> None:
    """Start ``kernel`` on ``device``, which need not be the current one, on which Triton does."""
    with _current(device):
        # a fused multiply-add keeps what a product loses where it is rounded: a capped logit would
        # differ from itself, and the loss of a sure row be negative. It spares the loss 1 to 2 % of
        # its instructions
        kernel[grid](*args, enable_fp_fusion=False, **options)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.accelerator.device_index(device.index)
