"""Softmax and cross-entropy for PyTorch, fused in Triton."""

from torch_softmax import uncertainty as uncertainty
from torch_softmax._ops import (
    LogSoftmaxFunction,
    SoftmaxCrossEntropyFunction,
    SoftmaxFunction,
)
from torch_softmax.functional import (
    CrossEntropyStats,
    LinearCrossEntropyStats,
    cross_entropy,
    cross_entropy_with_stats,
    linear_cross_entropy,
    linear_cross_entropy_with_stats,
    log_softmax,
    softmax,
)
from torch_softmax.modules import CrossEntropyLoss, LinearCrossEntropyLoss, LogSoftmax, Softmax
from torch_softmax.patching import patch

__all__ = [
    "CrossEntropyLoss",
    "CrossEntropyStats",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyStats",
    "LogSoftmax",
    "LogSoftmaxFunction",
    "Softmax",
    "SoftmaxCrossEntropyFunction",
    "SoftmaxFunction",
    "cross_entropy",
    "cross_entropy_with_stats",
    "linear_cross_entropy",
    "linear_cross_entropy_with_stats",
    "log_softmax",
    "patch",
    "softmax",
]
