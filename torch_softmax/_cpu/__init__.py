"""The operators on the CPU, in blocks of rows that stay in the cache.

A fresh large tensor costs the CPU more than the arithmetic on it, a page fault for every 4 KiB: so
only results are allocated whole, and what lies between is as large as a block.
"""

from torch_softmax._cpu.compiled_cross_entropy import compiled_loss, has_compiled_loss
from torch_softmax._cpu.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_backward_inplace,
    cross_entropy_forward,
)
from torch_softmax._cpu.results import empty_result_like
from torch_softmax._cpu.scale import scale_inplace
from torch_softmax._cpu.softmax import (
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)

__all__ = [
    "compiled_loss",
    "cross_entropy_backward",
    "cross_entropy_backward_inplace",
    "cross_entropy_forward",
    "cross_entropy_loss",
    "cross_entropy_loss_inplace",
    "empty_result_like",
    "has_compiled_loss",
    "log_softmax_backward",
    "log_softmax_forward",
    "scale_inplace",
    "softmax_backward",
    "softmax_forward",
]


def cross_entropy_loss(logits, target, weight, denominator, *args):
    from torch_softmax import reference
    from torch_softmax._options import LossOptions

    options = LossOptions(*args[:6])
    dtype, with_gradient = args[6:]
    if denominator is None and has_compiled_loss(logits, target, weight, options):
        d = empty_result_like(logits, logits.dtype) if with_gradient else None
        return compiled_loss(logits, target, weight, options, dtype, d), logits.new_empty(
            0
        ) if d is None else d
    return reference.cross_entropy_loss(logits, target, weight, denominator, *args)


def cross_entropy_loss_inplace(logits, *args):
    loss, d = cross_entropy_loss(logits, *args, True)
    logits.copy_(d)
    return loss
