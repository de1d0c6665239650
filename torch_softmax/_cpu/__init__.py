"""The operators on the CPU in Python: PyTorch's own, in blocks of rows that fit the cache.

For cross-entropy, ``library`` has compiled code in their place where there was a compiler.

New memory costs a page fault for every 4 KiB, which takes longer than the arithmetic on it. So only
results are allocated whole; intermediate results are as large as a tile or block.
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
