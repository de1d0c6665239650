"""PyTorch's own names, made ours for the length of a ``with`` block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_softmax import functional, modules


@contextmanager
def patch() -> Iterator[None]:
    """Make ``F.cross_entropy``, ``F.softmax``, ``F.log_softmax`` and ``nn.CrossEntropyLoss`` ours.

    They take what PyTorch's take, deprecated arguments too, and modules that exist already follow.
    On the way out, by an exception too, what was there before returns. It holds for the process,
    as any assignment to a module does: enter it before threads that train are started.

    Yields:
        None.

    Example:
        >>> with patch():
        ...     torch.nn.functional.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    replacements = (
        (F, "cross_entropy", _cross_entropy),
        (F, "softmax", _softmax),
        (F, "log_softmax", _log_softmax),
        (nn, "CrossEntropyLoss", modules.CrossEntropyLoss),
    )
    originals = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    try:
        for module, name, ours in replacements:
            setattr(module, name, ours)
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: functional.Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)  # type: ignore[assignment]
    return functional.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is None:
        dim = F._get_softmax_dim("softmax", input.dim(), _stacklevel)  # type: ignore[attr-defined]
    return functional.softmax(input, dim, dtype)


def _log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is None:
        dim = F._get_softmax_dim("log_softmax", input.dim(), _stacklevel)  # type: ignore[attr-defined]
    return functional.log_softmax(input, dim, dtype)
