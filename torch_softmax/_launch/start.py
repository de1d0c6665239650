"""Start a kernel over the rows of tensors."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from torch_softmax._rows import folded_batch
from triton_kernels.tiling import (
    MAX_TILE_BYTES,
    WALK_TILE_BYTES,
    cdiv,
    row_tiling,
    word_elements,
)

# what `kernel[grid]` returns
Kernel = Any


class Rows:
    """How the kernels see tensors: (outer, row, column), and the tile of one program."""

    def __init__(
        self,
        *matrices: Tensor,
        held_values: int,
        whole_rows: bool = True,
        walk_tile_bytes: int = WALK_TILE_BYTES,
    ) -> None:
        """Fold ``matrices`` for a kernel that holds ``held_values`` numbers for each element.

        One that needs no ``whole_rows`` has blocks of columns where it would hold long rows.
        """
        matrix = matrices[0]
        self.folds = folded_batch(matrix) or (1, matrix.shape[:-1].numel())
        self.n_rows, self.n_cols = self.folds[1], matrix.shape[-1]
        self.device = matrix.device
        # views wherever they exist
        self.folded = [matrix.reshape(*self.folds, self.n_cols) for matrix in matrices]
        strides = [folded.stride() for folded in self.folded]
        self.vector = word_elements(
            self.n_cols,
            strides,
            [folded.data_ptr() for folded in self.folded],
            min(matrix.element_size() for matrix in matrices),
        )
        # the masks of the rows' ends take registers too
        holds_whole_rows = whole_rows and self.vector == 1
        _, row_stride, col_stride = strides[0]
        self.tiling = row_tiling(
            self.n_rows,
            self.n_lanes,
            held_values * max(4, matrix.element_size()),
            adjacent_rows=0 < row_stride < col_stride,
            max_tile_bytes=MAX_TILE_BYTES if holds_whole_rows else MAX_TILE_BYTES // 2,
            walk_tile_bytes=walk_tile_bytes,
        )

    @property
    def n_lanes(self) -> int:
        """Columns of a row, and what may lie before them in their first word."""
        return self.n_cols + self.vector - 1

    @property
    def col_blocks(self) -> int:
        """Blocks of columns that cover a row; more than one where no block holds it."""
        return cdiv(self.n_lanes, self.tiling.block_cols)

    def start(self, kernel: Kernel, *args: Any, col_blocks: int = 1, **constexprs: Any) -> None:
        """Start ``kernel`` on all rows, on the device where they lie."""
        row_blocks = self.folds[0] * cdiv(self.n_rows, self.tiling.block_rows)
        with _current(self.device):
            kernel[(row_blocks, col_blocks)](
                *args,
                BLOCK_ROWS=self.tiling.block_rows,
                BLOCK_COLS=self.tiling.block_cols,
                VECTOR=self.vector,
                num_warps=self.tiling.num_warps,
                # fixed here because Triton's own default changes between versions
                enable_fp_fusion=True,
                **constexprs,
            )


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    # Triton launches on the current device, which need not be the tensor's
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.accelerator.device_index(device.index)
