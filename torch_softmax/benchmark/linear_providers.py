"""Who computes linear cross-entropy: this library, PyTorch in three forms, and three packages."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_softmax

# of features, the head's weight and class indices: the mean loss
LinearFunction = Callable[[Tensor, Tensor, Tensor], Any]


class LinearProvider(NamedTuple):
    """Somebody's linear cross-entropy; ``make`` imports and compiles what it needs."""

    name: str
    make: Callable[[], LinearFunction]
    module: str | None = None  # that has to be installed
    needs_gpu: bool = False

    def is_here(self, device: str) -> bool:
        """Whether it can run."""
        if self.needs_gpu and device == "cpu":
            return False
        return self.module is None or importlib.util.find_spec(self.module) is not None


def eager(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """PyTorch's linear layer, and the loss of its logits."""
    return F.cross_entropy(F.linear(x, weight), target)


def compiled() -> LinearFunction:
    """The same under torch.compile."""
    torch.compiler.reset()
    return torch.compile(eager, fullgraph=True, dynamic=False)


def torch_chunked() -> LinearFunction:
    """PyTorch's own chunks, as it chooses them."""
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda *tensors: F.linear_cross_entropy(*tensors, options=options)


def liger() -> LinearFunction:
    """liger-kernel."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy


def cce() -> LinearFunction:
    """cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy


def quack() -> LinearFunction:
    """quack-kernels."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy


OURS = LinearProvider("ours", lambda: torch_softmax.linear_cross_entropy)
PROVIDERS = (
    OURS,
    LinearProvider("eager", lambda: eager),
    LinearProvider("torch chunked", torch_chunked),
    LinearProvider("compile", compiled),
    LinearProvider("liger", liger, "liger_kernel", needs_gpu=True),
    LinearProvider("cce", cce, "cut_cross_entropy", needs_gpu=True),
    LinearProvider("quack", quack, "quack", needs_gpu=True),
)


def linear_providers(device: str) -> list[LinearProvider]:
    """Those that this machine has."""
    has_torch_chunks = hasattr(torch.nn, "LinearCrossEntropyOptions")
    return [
        provider
        for provider in PROVIDERS
        if provider.is_here(device) and (has_torch_chunks or provider.name != "torch chunked")
    ]
