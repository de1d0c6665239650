"""Public functions: check the arguments, move the class axis last, call the operator."""

from torch_softmax._options import Reduction
from torch_softmax.functional.cross_entropy import (
    CrossEntropyStats,
    cross_entropy,
    cross_entropy_with_stats,
)
from torch_softmax.functional.linear_cross_entropy import (
    LinearCrossEntropyStats,
    linear_cross_entropy,
    linear_cross_entropy_with_stats,
)
from torch_softmax.functional.softmax import log_softmax, softmax

__all__ = [
    "CrossEntropyStats",
    "LinearCrossEntropyStats",
    "Reduction",
    "cross_entropy",
    "cross_entropy_with_stats",
    "linear_cross_entropy",
    "linear_cross_entropy_with_stats",
    "log_softmax",
    "softmax",
]
