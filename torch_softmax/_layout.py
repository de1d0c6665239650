"""Row layouts: the class axis last, the batch dims collapsed into two; outputs per row."""

from typing import NamedTuple

import torch
from torch import Tensor


def collapse_batch_dims(x: Tensor) -> tuple[int, int] | None:
    """Sizes (outer, rows) of the batch dims collapsed into two, or None if that needs a copy."""
    collapsed: list[tuple[int, int]] = []
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if collapsed and stride == collapsed[-1][0] * collapsed[-1][1]:
            collapsed[-1] = (collapsed[-1][0] * size, collapsed[-1][1])
        elif size != 1:
            collapsed.append((size, stride))
    if len(collapsed) > 2:
        return None
    sizes = [size for size, _ in collapsed] + [1, 1]
    return (sizes[1], sizes[0])


def with_collapsible_batch_dims(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy if its batch dims do not collapse into two."""
    return x if x.dim() <= 3 or collapse_batch_dims(x) else x.contiguous()


def empty_rows_like(x: Tensor) -> Tensor:
    """An uninitialized result in the layout of ``x``, or contiguous if that does not collapse."""
    y = torch.empty_like(x)
    if y.dim() <= 2:
        return y
    sizes = (collapse_batch_dims(x), (1, x.shape[:-1].numel()))
    return y if collapse_batch_dims(y) in sizes else empty_contiguous_like(x, x.dtype)


def empty_contiguous_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialized contiguous result in the shape of ``x``."""
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def rows_beside(x: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Both tensors with axis ``dim`` last and batch dims that collapse to the same sizes.

    ``y`` is contiguous; ``x`` is copied if its batch dims collapse otherwise. A scalar becomes one
    row of one class.
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
    """The dtype of the arithmetic: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class RowOutputs(NamedTuple):
    """Outputs of ``cross_entropy_forward`` for each row; a disabled output has shape (0,).

    ``reference.cross_entropy_forward`` defines them.
    """

    nll: Tensor
    smooth: Tensor
    target_weight: Tensor
    lse: Tensor
    entropy: Tensor
    prediction: Tensor
    softmax_stats: Tensor


def enabled_outputs(
    target: Tensor, class_weight: Tensor | None, with_entropy: bool
) -> tuple[bool, ...]:
    """For each field of :class:`RowOutputs`, whether the arguments enable it."""
    smooth, target_weight = class_weight is not None, target.is_floating_point()
    return (True, smooth, target_weight, True, with_entropy, with_entropy, True)


def empty_row_outputs(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, with_entropy: bool
) -> RowOutputs:
    """Uninitialized outputs for the given arguments."""
    batch, dtype = logits.shape[:-1], compute_dtype(logits.dtype)
    enabled = enabled_outputs(target, class_weight, with_entropy)
    *shapes, prediction, _ = (batch if is_enabled else (0,) for is_enabled in enabled)
    # new_empty takes half the time of torch.empty
    outputs = [logits.new_empty(shape, dtype=dtype) for shape in shapes]
    outputs.append(logits.new_empty(prediction, dtype=torch.int64))
    outputs.append(logits.new_empty((*batch, 2), dtype=dtype))
    return RowOutputs(*outputs)


def coefficient_a(
    nll_part: Tensor, class_weight: Tensor | None, s: Tensor | None, z: Tensor | None, lse: Tensor
) -> Tensor:
    """The coefficient ``a`` of a row's gradient: the gradient in lse of nll, smooth and z_loss."""
    a = nll_part
    if class_weight is not None and s is not None:
        a = a + s * class_weight.sum()
    if z is not None:
        a = a + 2 * z * lse.masked_fill(z == 0, 0)
    return a
