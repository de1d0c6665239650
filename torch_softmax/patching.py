"""Replace PyTorch's functions by those of this package inside a ``with`` block."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_softmax import functional, modules


@contextmanager
def patch() -> Iterator[None]:
    """Replace ``F.cross_entropy``, ``F.softmax``, ``F.log_softmax`` and ``nn.CrossEntropyLoss``.

    The replacements take all arguments of PyTorch's functions, deprecated ones too, and existing
    modules call them. Leaving the block, also by an exception, restores PyTorch's functions. The
    patch applies to the whole process: enter the block before starting threads that train.

    Yields:
        None.

    Example:
        >>> with patch():
        ...     torch.nn.functional.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    with _LOCK:
        _enter()
    try:
        yield
    finally:
        with _LOCK:
            _leave()


# contexts may overlap and end in any order; the last one to end restores PyTorch's functions
_LOCK = threading.Lock()
_originals: list[tuple[Any, str, Any]] = []
_depth = 0


def _enter() -> None:
    global _depth
    _depth += 1
    if _depth > 1:
        return
    for module, name, ours in (
        (F, "cross_entropy", _cross_entropy),
        (F, "softmax", _softmax),
        (F, "log_softmax", _log_softmax),
        (nn, "CrossEntropyLoss", modules.CrossEntropyLoss),
    ):
        _originals.append((module, name, getattr(module, name)))
        setattr(module, name, ours)


def _leave() -> None:
    global _depth
    _depth -= 1
    if _depth:
        return
    while _originals:
        setattr(*_originals.pop())


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
