"""The operators on the CPU, in blocks of rows that stay in the cache.

A fresh large tensor costs the CPU more than the arithmetic on it, a page fault for every 4 KiB:
only results are allocated whole, and intermediate results are as large as a block.
"""

from torch_softmax._cpu.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_backward_inplace,
    cross_entropy_forward,
    cross_entropy_loss,
    cross_entropy_loss_inplace,
)
from torch_softmax._cpu.scale import scale_inplace
from torch_softmax._cpu.softmax import (
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)

__all__ = [
    "cross_entropy_backward",
    "cross_entropy_backward_inplace",
    "cross_entropy_forward",
    "cross_entropy_loss",
    "cross_entropy_loss_inplace",
    "log_softmax_backward",
    "log_softmax_forward",
    "scale_inplace",
    "softmax_backward",
    "softmax_forward",
]
