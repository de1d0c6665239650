"""Public functions: check the arguments, move the class axis last, call the operator."""

from torch_softmax._options import Reduction
from torch_softmax.functional.cross_entropy import (
    CrossEntropyStats,
    cross_entropy,
    cross_entropy_with_stats,
)
from torch_softmax.functional.softmax import log_softmax, softmax

__all__ = [
    "CrossEntropyStats",
    "Reduction",
    "cross_entropy",
    "cross_entropy_with_stats",
    "log_softmax",
    "softmax",
]
