"""The registered operators: schemas, implementations per device, fake tensors and derivatives.

The operators take the class axis last and treat every other axis as batch. Their
``autograd.Function`` classes serve reverse mode, eager or compiled; all other derivatives are those
of :mod:`torch_softmax.reference`.
"""

from torch_softmax._ops import cpu_path
from torch_softmax._ops.cross_entropy_loss import (
    SoftmaxCrossEntropyFunction,
    cross_entropy_loss,
    cross_entropy_with_rows,
)
from torch_softmax._ops.donation import donate
from torch_softmax._ops.linear_chunks import LinearHead
from torch_softmax._ops.linear_cross_entropy import (
    linear_cross_entropy_loss,
    linear_cross_entropy_with_rows,
)
from torch_softmax._ops.softmax import (
    LogSoftmaxFunction,
    SoftmaxFunction,
    log_softmax,
    softmax,
)

__all__ = [
    "LinearHead",
    "LogSoftmaxFunction",
    "SoftmaxCrossEntropyFunction",
    "SoftmaxFunction",
    "cross_entropy_loss",
    "cross_entropy_with_rows",
    "donate",
    "linear_cross_entropy_loss",
    "linear_cross_entropy_with_rows",
    "log_softmax",
    "softmax",
]

cpu_path.take(cpu_path.DEFAULT)
