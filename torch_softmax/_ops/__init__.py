"""What PyTorch registers: schemas, implementations per device, fake tensors and derivatives.

The operators see the class axis last, and every other axis as batch. Their ``autograd.Function``
forms carry all derivatives: a backward that is a Function itself, so that it has derivatives too,
``jvp`` for forward mode, and ``vmap``.
"""

from torch_softmax._ops.cross_entropy import SoftmaxCrossEntropyFunction, softmax_cross_entropy
from torch_softmax._ops.cross_entropy_loss import composed_loss, cross_entropy_loss
from torch_softmax._ops.inplace import donate
from torch_softmax._ops.log_softmax import LogSoftmaxFunction, log_softmax
from torch_softmax._ops.softmax import SoftmaxFunction, softmax

__all__ = [
    "LogSoftmaxFunction",
    "SoftmaxCrossEntropyFunction",
    "SoftmaxFunction",
    "composed_loss",
    "cross_entropy_loss",
    "donate",
    "log_softmax",
    "softmax",
    "softmax_cross_entropy",
]
