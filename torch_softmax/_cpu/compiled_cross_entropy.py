"""The loss of all rows and its gradient in one call of compiled code.

For few rows the calls of PyTorch's operators are the whole cost, and for many their intermediate
results. ``compiled.c`` is compiled when the package is installed. Where no compiler was at hand,
and for what it does not serve, the loss is composed of PyTorch's operators.
"""

import torch
from torch import Tensor

from torch_softmax._cpu.cross_entropy_block import class_error
from torch_softmax._layout import collapse_batch_dims
from torch_softmax._options import LossOptions

try:
    from torch_softmax._cpu import compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

DTYPES = (torch.float32, torch.bfloat16)


def has_compiled_loss(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: LossOptions
) -> bool:
    """Whether :func:`compiled_loss` serves such arguments, which lie on the CPU."""
    return (
        compiled is not None
        and logits.dtype in DTYPES
        and options.softcap is None
        and options.logit_scale == 1
        and not target.dtype.is_floating_point
        and logits.numel() > 0
        and (logits.dim() <= 2 or collapse_batch_dims(logits) is not None)
    )


def compiled_loss(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    dlogits: Tensor | None,
) -> Tensor:
    """Sum or mean of the losses in ``dtype``; their gradient in ``dlogits``, which may be logits.

    IndexError for a target that is no class, with nothing written.
    """
    if logits.dim() > 2:
        folds = collapse_batch_dims(logits) or ()
        logits = logits.view(*folds, -1)
        dlogits = None if dlogits is None else dlogits.view_as(logits)
    loss = compiled.cross_entropy(
        logits,
        dlogits,
        target.long().contiguous(),
        None if class_weight is None else class_weight.float().contiguous(),
        options.ignore_index,
        options.reduction == "mean",
        options.label_smoothing,
        options.z_loss,
        torch.get_num_threads(),
    )
    if isinstance(loss, int):
        raise class_error(loss, logits.shape[-1])
    return torch.scalar_tensor(loss, dtype=dtype, device=logits.device)
