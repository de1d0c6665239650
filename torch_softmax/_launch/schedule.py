"""Launch a kernel over the rows of tensors: strides, tile of a program, grid."""

import functools
from typing import Any, NamedTuple

from torch import Tensor

from torch_softmax._kernels.tiles import Matrix, TileShape
from torch_softmax._kernels.tiling import (
    MAX_PACKED_COLS,
    MAX_TILE_BYTES,
    MIN_TILE_BYTES,
    READ_ONCE,
    VEC_BYTES,
    OnlineTile,
    Tiling,
    cdiv,
    cluster_tiling,
    has_unaligned_rows,
    n_partials,
    packed_tiling,
    row_tiling,
    vec_size,
)
from torch_softmax._launch.clusters import has_clusters
from torch_softmax._launch.specialized import Kernel, Launch
from torch_softmax._layout import collapse_batch_dims


class Limits(NamedTuple):
    """The live values of a kernel per element of its tile, and limits on the tile.

    See :func:`row_tiling` for the limits. Rows of few classes without gaps are packed if the kernel
    ``may_pack``. A thread block of a cluster holds up to ``cluster_cols`` columns without spilling
    registers; 0 for a kernel that reads no row twice. ``tests/kernels/compile_clusters.py`` prints
    the registers of each kernel and width.
    """

    live_values: int
    max_tile_bytes: int = MAX_TILE_BYTES
    min_tile_bytes: int = MIN_TILE_BYTES
    online: OnlineTile = READ_ONCE
    may_pack: bool = False
    cluster_cols: int = 0


class Schedule(NamedTuple):
    """The tile of a program, the warps of each thread block, partials, and blocks of the matrix."""

    tile: TileShape
    num_warps: int
    n_partials: int
    row_blocks: int
    col_blocks: int


# of different layouts that are remembered
MAX_SCHEDULES = 4096


def layout(x: Tensor) -> tuple[Any, ...]:
    """What decides how a kernel reads ``x``: two tensors of one layout share a launch."""
    return x.dtype, x.data_ptr() % VEC_BYTES, x.shape, x.stride()


# the decision costs as much as a launch
@functools.lru_cache(maxsize=MAX_SCHEDULES)
def schedule(
    shape: tuple[int, int, int],
    strides: tuple[tuple[int, ...], ...],
    addresses: tuple[int, ...],
    element_bytes: tuple[int, ...],
    limits: Limits,
    may_cluster: bool,
) -> Schedule:
    """The schedule for matrices of these sizes and strides, and addresses modulo VEC_BYTES."""
    outer, n_rows, n_cols = shape
    size = vec_size(n_cols, strides, addresses, min(element_bytes))
    unaligned = has_unaligned_rows(n_cols, strides, size)
    # the first vector of a row may contain elements before the row
    width = n_cols + (size - 1 if unaligned else 0)
    packed = (
        limits.may_pack
        and n_cols <= MAX_PACKED_COLS
        and outer == 1
        and all(stride[1:] == (n_cols, 1) for stride in strides)
        and not any(addresses)
    )
    if packed:
        size, unaligned, tiling = VEC_BYTES // min(element_bytes), False, packed_tiling(n_cols)
    else:
        # tiles of 2-byte accesses take more registers, and a float64 takes two
        may_cluster &= max(element_bytes) < 8 and has_vectors(size, n_cols, strides, addresses)
        live_bytes = limits.live_values * max(4, element_bytes[0])
        tiling = _tiling(n_rows, width, live_bytes, strides[0], limits, unaligned, may_cluster)
    return Schedule(
        TileShape(tiling.block_rows, tiling.block_cols, size, unaligned, packed, tiling.num_ctas),
        tiling.num_warps,
        n_partials(tiling, element_bytes[0]),
        outer * cdiv(n_rows, tiling.block_rows),
        cdiv(width, tiling.block_cols),
    )


def _tiling(
    n_rows: int,
    width: int,
    live_bytes: int,
    strides: tuple[int, ...],
    limits: Limits,
    unaligned: bool,
    may_cluster: bool,
) -> Tiling:
    """The tile of rows that are not packed."""
    _, row_stride, class_stride = strides
    class_strided = 0 < row_stride < class_stride
    # masks of row heads and tails take registers too
    parts = 2 if unaligned else 1
    if may_cluster and not class_strided:
        tiling = cluster_tiling(width, limits.cluster_cols // parts)
        if tiling is not None:
            return tiling
    return row_tiling(
        n_rows,
        width,
        live_bytes,
        class_strided=class_strided,
        max_tile_bytes=limits.max_tile_bytes // parts,
        min_tile_bytes=limits.min_tile_bytes,
        online=limits.online,
    )


def has_vectors(
    size: int, n_cols: int, strides: tuple[tuple[int, ...], ...], addresses: tuple[int, ...]
) -> bool:
    """Whether a kernel accesses 16 bytes at a time, by itself or because Triton infers it."""
    return size > 1 or not (any(addresses) or has_unaligned_rows(n_cols, strides, 16))


class Rows:
    """Tensors as matrices of axes (outer, row, class), and the schedule of a kernel over them."""

    def __init__(self, *tensors: Tensor, limits: Limits) -> None:
        """Collapse ``tensors`` of one shape, and choose the schedule for ``limits``."""
        first = tensors[0]
        self.n_cols, self.device = first.shape[-1], first.device
        outer, self.n_rows = collapse_batch_dims(first) or (1, first.shape[:-1].numel())
        self.matrices = [self._matrix(outer, tensor) for tensor in tensors]
        self.schedule = schedule(
            (outer, self.n_rows, self.n_cols),
            tuple(matrix[1:] for matrix in self.matrices),
            tuple(matrix.ptr.data_ptr() % VEC_BYTES for matrix in self.matrices),
            tuple(tensor.element_size() for tensor in tensors),
            limits,
            has_clusters(self.device),
        )

    def _matrix(self, outer: int, tensor: Tensor) -> Matrix:
        # a view if the layout allows, else a copy
        rows = tensor.reshape(outer, self.n_rows, self.n_cols)
        outer_stride, row_stride, class_stride = rows.stride()
        return Matrix(rows, outer_stride if outer > 1 else 0, row_stride, class_stride)

    def target_indices(self, target: Tensor) -> Matrix:
        """Class indices of the rows as a matrix of one column."""
        return Matrix(target.contiguous(), self.n_rows, 1, 1)

    def launch_of(
        self, kernel: Kernel, *, grid: tuple[int, ...] | None = None, **constexprs: Any
    ) -> Launch:
        """The launch of ``kernel``, by default of one program for each block of rows."""
        return Launch(
            kernel,
            grid or (self.schedule.row_blocks,),
            self.device,
            num_warps=self.schedule.num_warps,
            num_ctas=self.schedule.tile.num_ctas,
            TILE=self.schedule.tile,
            **constexprs,
        )

    def launch(
        self, kernel: Kernel, *args: Any, grid: tuple[int, ...] | None = None, **constexprs: Any
    ) -> None:
        """Launch ``kernel`` with ``args``."""
        self.launch_of(kernel, grid=grid, **constexprs)(*args)
