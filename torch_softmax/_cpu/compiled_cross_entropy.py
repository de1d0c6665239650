"""Cross-entropy in one call of compiled code.

``compiled.c`` is compiled when the package is installed, if there is a compiler. For few rows the
calls of PyTorch's operators would be the whole cost, and for many rows their intermediate results.
"""

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
    logits: Tensor,
    dlogits: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    options: LossOptions,
) -> float:
    """Sum or mean of the losses; their gradient goes to dlogits, which may be logits."""
    n_classes = logits.shape[-1]
    logits, dlogits, target = _collapsed(logits, dlogits, target)
    loss = compiled.cross_entropy_loss(
        logits,
        dlogits,
        target,
        weight,
        None if denominator is None else float(denominator),
        options.ignore_index,
        options.reduction == "mean",
        options.label_smoothing,
        options.z_loss,
        options.softcap,
        options.logit_scale,
        torch.get_num_threads(),
    )
    if isinstance(loss, int):
        raise class_error(loss, n_classes)
    return loss


def compiled_forward(
    outputs: RowOutputs,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> None:
    """``reference.cross_entropy_forward`` into ``outputs``."""
    n_classes = logits.shape[-1]
    logits, _, target = _collapsed(logits, None, target)
    options = (logit_scale, softcap, *outputs, torch.get_num_threads())
    bad = compiled.cross_entropy_forward(logits, target, class_weight, *options)
    if bad is not None:
        raise class_error(bad, n_classes)


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
    """``reference.cross_entropy_backward`` into ``dlogits``, which may be logits."""
    dtype = compute_dtype(logits.dtype)
    # gradients may be expanded
    rows = [None if t is None else t.to(dtype).contiguous() for t in (softmax_stats, a, b, s, e)]
    logits, dlogits, target = _collapsed(logits, dlogits, target)
    compiled.cross_entropy_backward(
        logits,
        dlogits,
        target,
        class_weight,
        *rows,
        logit_scale,
        softcap,
        torch.get_num_threads(),
    )


def _collapsed(
    logits: Tensor, dlogits: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The tensors as compiled code takes them: batch dims collapsed into two, int64 classes."""
    is_classes = not target.is_floating_point()
    if is_classes:
        target = target.long().contiguous()
    if logits.dim() > 2:
        batch_dims = collapse_batch_dims(logits) or (1, 1)
        logits = logits.view(*batch_dims, -1)
        dlogits = None if dlogits is None else dlogits.view(logits.shape)
        target = target if is_classes else target.reshape(logits.shape)
    return logits, dlogits, target
