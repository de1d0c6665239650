"""The matrix products of linear cross-entropy, for some rows at a time.

The logits of a chunk of rows lie in one buffer that every chunk uses again, and that their gradient
takes. Rows are those of ``x``; with K-dimensional classes a row holds the logits of several losses.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torch_softmax._layout import compute_dtype

# bytes of logits at once. With fewer rows a GPU takes longer to read the weights than to multiply
GPU_BYTES, MIN_GPU_ROWS, MAX_GPU_ROWS = 2**30, 2048, 8192
# a CPU computes on few rows as fast as on many, and pays for each fresh page
CPU_BYTES, MIN_CPU_ROWS, MAX_CPU_ROWS = 2**25, 64, 8192


class LinearHead(NamedTuple):
    """What gives the logits: rows of ``x`` times ``weight`` plus ``bias``, in ``logits_dtype``.

    ``weight`` has shape (classes * losses per row, features), with ``bias`` to match.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    logits_dtype: torch.dtype

    def products_dtype(self) -> torch.dtype:
        """The dtype of the operands: on CUDA alone a half-precision product may be float32."""
        is_wider = self.logits_dtype != self.x.dtype
        return self.logits_dtype if is_wider and not self.x.is_cuda else self.x.dtype


class Chunk(NamedTuple):
    """Some rows, and their logits in the buffer."""

    rows: slice | Tensor
    x: Tensor
    logits: Tensor  # (rows, classes * losses per row)


def chunks(
    head: LinearHead, ignored: Tensor | None, chunk_size: int | None
) -> tuple[int, Iterator[Chunk]]:
    """The number of chunks, and the chunks, whose logits take the same buffer in turn."""
    index = unused = None
    if ignored is not None and _may_count(ignored, chunk_size):
        index = _counted_rows(ignored)
    else:
        unused = ignored
    n_rows = len(head.x) if index is None else len(index)
    size = min(chunk_size or rows_in_budget(head), max(n_rows, 1))
    n_chunks = -(-n_rows // size)
    # chunks of equal size, which all reach the same speed
    size = size if chunk_size or not n_chunks else -(-n_rows // n_chunks)
    return n_chunks, _fill_chunks(head, index, unused, n_rows, size)


def zero_rows(x: Tensor, unused: Tensor | None) -> Tensor:
    """``x`` with zeros in the rows of a mask, whose NaN would reach the weight's gradient."""
    return x if unused is None else x.masked_fill(unused.unsqueeze(1), 0)


def rows_in_budget(head: LinearHead) -> int:
    """Rows whose logits fit into the memory that is set aside for them."""
    on_cpu = head.x.device.type == "cpu"
    budget, least, most = (
        (CPU_BYTES, MIN_CPU_ROWS, MAX_CPU_ROWS)
        if on_cpu
        else (GPU_BYTES, MIN_GPU_ROWS, MAX_GPU_ROWS)
    )
    row_bytes = len(head.weight) * head.logits_dtype.itemsize
    return min(max(budget // row_bytes, least), most)


def _may_count(ignored: Tensor, chunk_size: int | None) -> bool:
    """False where only a GPU knows their number, and the caller asked not to wait for it."""
    return chunk_size is None or ignored.device.type == "cpu"


def _counted_rows(ignored: Tensor) -> Tensor | None:
    """Index of the rows that are not ignored, or None for all of them."""
    index = (~ignored).nonzero().squeeze(1)
    return None if len(index) == len(ignored) else index


def _fill_chunks(
    head: LinearHead, index: Tensor | None, unused: Tensor | None, n_rows: int, size: int
) -> Iterator[Chunk]:
    weight = head.weight.to(head.products_dtype()).t()
    buffer = head.x.new_empty((min(size, n_rows), len(head.weight)), dtype=head.logits_dtype)
    for start in range(0, n_rows, size):
        rows = slice(start, min(start + size, n_rows))
        chosen = rows if index is None else index[rows]
        x = zero_rows(head.x[chosen], None if unused is None else unused[rows])
        logits = buffer[: rows.stop - rows.start]
        if head.bias is None:
            multiply(x.to(weight.dtype), weight, logits)
        else:
            _multiply_and_shift(x.to(weight.dtype), weight, head.bias, logits)
        yield Chunk(chosen, x, logits)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b, accumulated in float32 and rounded once."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)


def _multiply_and_shift(a: Tensor, b: Tensor, bias: Tensor, out: Tensor) -> None:
    """out = a @ b + bias, rounded once."""
    if out.dtype == a.dtype:
        torch.addmm(bias.to(out.dtype), a, b, out=out)
    else:
        multiply(a, b, out)
        out += bias


def multiply_and_add(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out += a @ b, where ``out`` may be wider than the operands."""
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, out=out)
    elif a.is_cuda:
        torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, out=out)
    else:
        torch.addmm(out, a.to(out.dtype), b.to(out.dtype), out=out)


class HeadGradients:
    """Gradients of a head, the sum of what each chunk adds; those that nobody needs are empty."""

    def __init__(self, head: LinearHead, needed: list[bool], n_chunks: int) -> None:
        self.head = head
        self.needs_x, self.needs_weight, self.needs_bias = needed
        # a sum of many chunks is rounded once, at its end
        self.sum_dtype = head.x.dtype if n_chunks == 1 else compute_dtype(head.x.dtype)
        self.is_single = n_chunks == 1
        x, weight, bias = head[:3]
        self.x = x.new_zeros(x.shape if self.needs_x else (0,))
        weight_shape = weight.shape if self.needs_weight else (0,)
        self.weight = weight.new_zeros(weight_shape, dtype=self.sum_dtype)
        bias_shape = bias.shape if bias is not None and self.needs_bias else (0,)
        self.bias = weight.new_zeros(bias_shape, dtype=compute_dtype(weight.dtype))

    def add(self, chunk: Chunk, dlogits: Tensor) -> None:
        """Add what the gradient of a chunk's logits contributes."""
        if self.needs_bias:
            self.bias += dlogits.sum(0, dtype=self.bias.dtype)
        dlogits = dlogits.to(self.head.x.dtype)
        if self.needs_x:
            if isinstance(chunk.rows, slice):
                torch.mm(dlogits, self.head.weight, out=self.x[chunk.rows])
            else:
                self.x[chunk.rows] = torch.mm(dlogits, self.head.weight)
        if self.needs_weight:
            add = multiply if self.is_single else multiply_and_add
            add(dlogits.t(), chunk.x, self.weight)

    def rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums, in the dtypes of what they are the gradients of."""
        dtype = self.head.weight.dtype
        return self.x, self.weight.to(dtype), self.bias.to(dtype)


def empty_gradients(head: LinearHead, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialized gradients, as fake tensors stand for them."""
    like = (head.x, head.weight, head.weight.new_empty(len(head.weight)))
    dx, dweight, dbias = (
        torch.empty_like(y, memory_format=torch.contiguous_format) if is_needed else y.new_empty(0)
        for y, is_needed in zip(like, needed, strict=True)
    )
    return dx, dweight, dbias
