"""Cross-entropy in one call of compiled code.

``compiled.c`` is compiled when the package is installed, if there is a compiler. With PyTorch's
operators, few rows would cost mostly calls, and many rows mostly intermediate results.
"""

from typing import Any

import torch
from torch import Tensor

from torch_softmax._cpu.class_error import class_error
from torch_softmax._layout import RowOutputs, collapse_batch_dims, compute_dtype
from torch_softmax._options import LossOptions

try:
    from torch_softmax._cpu import compiled
except ImportError:
    compiled = None  # type: ignore[assignment]


def compiled_loss(
    dlogits: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    dloss: Tensor | None,
    options: LossOptions,
) -> float:
    """Sum or mean of the losses; the gradient goes to ``dlogits``, which may be ``logits``."""
    logits, target = _collapsed(logits, target)
    if dlogits is not None and dlogits.dim() > 2:
        dlogits = dlogits.view(logits.shape)
    divisor = None if denominator is None else float(denominator)
    factor = None if dloss is None else float(dloss)
    arguments: Any = (divisor, factor, *options, torch.get_num_threads())
    loss = compiled.cross_entropy_loss(logits, dlogits, target, weight, *arguments)
    if isinstance(loss, int):
        raise class_error(loss, logits.shape[-1])
    return loss


def compiled_forward(
    outputs: RowOutputs,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> None:
    """Write the results of ``reference.cross_entropy_forward`` to ``outputs``."""
    logits, target = _collapsed(logits, target)
    options = (logit_scale, softcap, *outputs, torch.get_num_threads())
    bad = compiled.cross_entropy_forward(logits, target, class_weight, *options)
    if bad is not None:
        raise class_error(bad, logits.shape[-1])


def compiled_backward(
    dlogits: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> None:
    """Write ``reference.cross_entropy_backward`` to ``dlogits``, which may be ``logits``."""
    dtype = compute_dtype(logits.dtype)
    # contiguous, because incoming gradients may be expanded
    stats, a, b = (t.to(dtype).contiguous() for t in (softmax_stats, a, b))
    s, e = (None if t is None else t.to(dtype).contiguous() for t in (s, e))
    logits, target = _collapsed(logits, target)
    compiled.cross_entropy_backward(
        logits,
        dlogits if dlogits.dim() <= 2 else dlogits.view(logits.shape),
        target,
        class_weight,
        stats,
        a,
        b,
        s,
        e,
        logit_scale,
        softcap,
        torch.get_num_threads(),
    )


def _collapsed(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The tensors with batch dims collapsed into two, and class indices as int64."""
    is_classes = not target.is_floating_point()
    if is_classes and (target.dtype is not torch.int64 or not target.is_contiguous()):
        target = target.long().contiguous()
    if logits.dim() > 2:
        logits = logits.view(*(collapse_batch_dims(logits) or (1, 1)), -1)
        target = target if is_classes else target.reshape(logits.shape)
    return logits, target
