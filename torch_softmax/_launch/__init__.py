"""Launchers: allocate the result, choose the tile, start the kernel. No checks, no autograd.

Every launcher takes tensors with the class axis last whose other axes fold into two
(:mod:`torch_softmax._layout`), and returns new tensors. Nothing else imports Triton's kernels,
and nothing imports this package before the first tensor that Triton serves.
"""

from torch_softmax._launch.cross_entropy import (
    launch_cross_entropy_backward,
    launch_cross_entropy_backward_inplace,
    launch_cross_entropy_forward,
)
from torch_softmax._launch.cross_entropy_loss import launch_cross_entropy_loss as _fused
from torch_softmax._launch.scale import launch_scale_inplace
from torch_softmax._launch.softmax import (
    launch_log_softmax_backward,
    launch_log_softmax_forward,
    launch_softmax_backward,
    launch_softmax_forward,
)

__all__ = [
    "launch_cross_entropy_backward",
    "launch_cross_entropy_backward_inplace",
    "launch_cross_entropy_forward",
    "launch_cross_entropy_loss",
    "launch_log_softmax_backward",
    "launch_log_softmax_forward",
    "launch_scale_inplace",
    "launch_softmax_backward",
    "launch_softmax_forward",
]


def launch_cross_entropy_loss(logits, target, weight, denominator, *args):
    from torch_softmax import reference
    from torch_softmax._options import LossOptions

    options = LossOptions(*args[:6])
    dtype, with_gradient = args[6:]
    if denominator is None and not target.is_floating_point() and logits.numel():
        d = logits.new_empty(logits.shape).copy_(logits) if with_gradient else None
        import torch

        d = torch.empty_like(logits) if with_gradient else None
        return _fused(logits, target, weight, options, dtype, d), logits.new_empty(
            0
        ) if d is None else d
    return reference.cross_entropy_loss(logits, target, weight, denominator, *args)


def launch_cross_entropy_loss_inplace(logits, *args):
    loss, d = launch_cross_entropy_loss(logits, *args, True)
    logits.copy_(d)
    return loss
