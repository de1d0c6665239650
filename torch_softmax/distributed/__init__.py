"""Cross-entropy of classes that are sharded across ranks, over ``torch.distributed``."""

from torch_softmax.distributed.cross_entropy import (
    vocab_parallel_cross_entropy,
    vocab_parallel_cross_entropy_with_stats,
)
from torch_softmax.distributed.linear_cross_entropy import vocab_parallel_linear_cross_entropy

__all__ = [
    "vocab_parallel_cross_entropy",
    "vocab_parallel_cross_entropy_with_stats",
    "vocab_parallel_linear_cross_entropy",
]
