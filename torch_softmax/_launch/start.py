"""Start a kernel over the rows of tensors."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from torch_softmax._rows import folded_batch
from triton_kernels.tiling import cdiv, row_tiling

# what `kernel[grid]` returns
Kernel = Any


class Rows:
    """How the kernels see a tensor: (outer, row, column), and the tile of one program."""

    def __init__(self, matrix: Tensor, held_values: int) -> None:
        """Fold ``matrix``; a kernel holds ``held_values`` numbers for an element of its tile."""
        self.folds = folded_batch(matrix) or (1, matrix.shape[:-1].numel())
        self.n_rows, self.n_cols = self.folds[1], matrix.shape[-1]
        self.device = matrix.device
        _, row_stride, col_stride = self.folded(matrix).stride()
        self.tiling = row_tiling(
            self.n_rows,
            self.n_cols,
            held_values * max(4, matrix.element_size()),
            adjacent_rows=0 < row_stride < col_stride,
        )

    @property
    def col_blocks(self) -> int:
        """Blocks of columns that cover a row; more than one where no block holds it."""
        return cdiv(self.n_cols, self.tiling.block_cols)

    def folded(self, matrix: Tensor) -> Tensor:
        """``matrix`` with its three axes: a view wherever one exists."""
        return matrix.reshape(*self.folds, self.n_cols)

    def start(self, kernel: Kernel, *args: Any, col_blocks: int = 1, **constexprs: Any) -> None:
        """Start ``kernel`` on all rows, on the device where they lie."""
        row_blocks = self.folds[0] * cdiv(self.n_rows, self.tiling.block_rows)
        with _current(self.device):
            kernel[(row_blocks, col_blocks)](
                *args,
                BLOCK_ROWS=self.tiling.block_rows,
                BLOCK_COLS=self.tiling.block_cols,
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
