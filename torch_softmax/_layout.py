"""The rows of a tensor: its class axis last, its other axes folded into two."""

from typing import NamedTuple

import torch
from torch import Tensor


def collapse_batch_dims(x: Tensor) -> tuple[int, int] | None:
    """Sizes (outer, rows) into which the axes before the last fold without a copy, if they do."""
    folds: list[tuple[int, int]] = []
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if folds and stride == folds[-1][0] * folds[-1][1]:
            folds[-1] = (folds[-1][0] * size, folds[-1][1])
        elif size != 1:
            folds.append((size, stride))
    if len(folds) > 2:
        return None
    sizes = [size for size, _ in folds] + [1, 1]
    return (sizes[1], sizes[0])


def with_collapsible_batch_dims(x: Tensor) -> Tensor:
    """``x``, or where its rows lie too irregularly for a kernel to walk, a contiguous copy."""
    return x if x.dim() <= 3 or collapse_batch_dims(x) else x.contiguous()


def empty_rows_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialized result with the layout of ``x``, or contiguous where that would not fold."""
    y = torch.empty_like(x, dtype=dtype)
    if y.dim() <= 2:
        return y
    folds = (collapse_batch_dims(x), (1, x.shape[:-1].numel()))
    return (
        y if collapse_batch_dims(y) in folds else torch.empty(x.shape, dtype=dtype, device=x.device)
    )


def empty_contiguous_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialized contiguous result in the shape of ``x``."""
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def rows_beside(x: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Both tensors with axis ``dim`` last, their batch dims collapsing alike.

    Where they would not, ``x`` is copied to be contiguous, as ``y`` is. A scalar is a row of one.
    """
    if not y.dim():
        return x.reshape(1), y.view(1)
    x_rows, y_rows = x.movedim(dim, -1), y.movedim(dim, -1)
    if x_rows.dim() > 2 and collapse_batch_dims(x_rows) != collapse_batch_dims(y_rows):
        x_rows = x.contiguous().movedim(dim, -1)
    return x_rows, y_rows


def with_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """``x``, or a copy of it, in the layout that ``torch.empty_like`` gives for ``y``."""
    if x.dim() <= 3 or x.stride() == torch.empty_like(y, device="meta").stride():
        return x
    return torch.empty_like(y, dtype=x.dtype).copy_(x)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are accumulated in: float64 for itself, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class RowOutputs(NamedTuple):
    """What cross-entropy's forward returns for each row; what is not wanted has shape (0,).

    ``reference.cross_entropy_forward`` defines them.
    """

    nll: Tensor
    smooth: Tensor
    target_weight: Tensor
    lse: Tensor
    entropy: Tensor
    prediction: Tensor
    softmax_stats: Tensor


def wanted_outputs(
    target: Tensor, class_weight: Tensor | None, with_entropy: bool
) -> tuple[bool, ...]:
    """For each of :class:`RowOutputs`, whether such arguments want it."""
    smooth, target_weight = class_weight is not None, target.is_floating_point()
    return (True, smooth, target_weight, True, with_entropy, with_entropy, True)


def empty_row_outputs(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, with_entropy: bool
) -> RowOutputs:
    """Uninitialized outputs for such arguments."""
    batch, device = logits.shape[:-1], logits.device
    shapes = {"softmax_stats": (*batch, 2)}
    dtypes = {"prediction": torch.int64}
    wanted = wanted_outputs(target, class_weight, with_entropy)
    return RowOutputs(
        *(
            torch.empty(
                shapes.get(name, batch) if is_wanted else (0,),
                dtype=dtypes.get(name, compute_dtype(logits.dtype)),
                device=device,
            )
            for name, is_wanted in zip(RowOutputs._fields, wanted, strict=True)
        )
    )


def gradient_in_lse(
    of_nll: Tensor, class_weight: Tensor | None, s: Tensor | None, z: Tensor | None, lse: Tensor
) -> Tensor:
    """The coefficient ``a`` of a row's gradient: what its nll, smooth and z * lse**2 add up to."""
    a = of_nll
    if class_weight is not None and s is not None:
        a = a + s * class_weight.sum()
    if z is not None:
        a = a + 2 * z * lse.masked_fill(z == 0, 0)
    return a
