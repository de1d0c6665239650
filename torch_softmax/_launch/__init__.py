"""Launchers: allocate the result, choose the tile, launch the kernel. No checks, no autograd.

Every launcher takes tensors with the class axis last whose batch dims collapse into two
(:mod:`torch_softmax._layout`). Only this package imports the kernels, and it is imported with the
first tensor on a device that Triton serves.
"""

from torch_softmax._launch.cross_entropy import (
    launch_cross_entropy_backward,
    launch_cross_entropy_backward_inplace,
    launch_cross_entropy_forward,
)
from torch_softmax._launch.cross_entropy_loss import (
    launch_cross_entropy_loss,
    launch_cross_entropy_loss_inplace,
)
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
    "launch_cross_entropy_loss_inplace",
    "launch_log_softmax_backward",
    "launch_log_softmax_forward",
    "launch_scale_inplace",
    "launch_softmax_backward",
    "launch_softmax_forward",
]
