"""The measured providers: this library, PyTorch, and packages for the same problem.

cut-cross-entropy is not among them: it has only linear cross-entropy and takes no logits.
"""

import importlib.util
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_softmax
from torch_softmax._command_line import UserError
from torch_softmax.benchmark.cases import Case

# a function of the logits and, if the operator has one, the target
Function = Callable[..., Tensor]


class Provider(NamedTuple):
    """Operators to measure; ``make`` returns the function for a case, or None.

    A provider that overwrites the logits gets a new copy of them outside the timed region.
    """

    name: str
    make: Callable[[Case], Function | None]
    module: str | None = None  # must be installed
    distribution: str | None = None
    overwrites_logits: bool = False

    @property
    def is_installed(self) -> bool:
        return self.module is None or importlib.util.find_spec(self.module) is not None


OURS: dict[str, Function] = {
    "softmax": lambda x: torch_softmax.softmax(x, 1),
    "log_softmax": lambda x: torch_softmax.log_softmax(x, 1),
    "cross_entropy": torch_softmax.cross_entropy,
}
EAGER: dict[str, Function] = {
    "softmax": lambda x: F.softmax(x, 1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "cross_entropy": F.cross_entropy,
}


def ours(case: Case) -> Function:
    """This library."""
    return OURS[case.operator]


def ours_in_place(case: Case) -> Function | None:
    """This library with the gradient in the memory of the logits."""
    if (case.operator, case.mode) != ("cross_entropy", "step"):
        return None
    return lambda x, target: torch_softmax.cross_entropy(x, target, inplace=True)


def eager(case: Case) -> Function:
    """PyTorch."""
    return EAGER[case.operator]


def compiled(case: Case) -> Function:
    """PyTorch under torch.compile, compiled anew for each case and number of threads."""
    torch.compiler.reset()
    return torch.compile(EAGER[case.operator], fullgraph=True, dynamic=False)


def liger(case: Case) -> Function | None:
    """liger-kernel; its cross-entropy computes the gradient in forward, so only "step" applies."""
    from liger_kernel.transformers import functional

    if case.operator == "softmax":
        return _on_rows(functional.liger_softmax)
    if (case.operator, case.mode) == ("cross_entropy", "step"):
        return _on_rows(functional.liger_cross_entropy)
    return None


def quack(case: Case) -> Function | None:
    """quack-kernels."""
    from quack.cross_entropy import cross_entropy
    from quack.softmax import softmax

    return {"softmax": _on_rows(softmax), "cross_entropy": _on_rows(cross_entropy)}.get(
        case.operator
    )


def quack_in_place(case: Case) -> Function | None:
    """quack-kernels with the gradient in the memory of the logits."""
    from quack.cross_entropy import cross_entropy

    if (case.operator, case.mode) != ("cross_entropy", "step"):
        return None
    return _on_rows(lambda x, target: cross_entropy(x, target, inplace_backward=True))


def _on_rows(function: Function) -> Function:
    """Adapt a function of matrices to any shape; the copy that this needs is part of its time."""

    def on_rows(x: Tensor, *target: Tensor) -> Tensor:
        if x.dim() == 2:
            return function(x, *target)
        classes_last = x.movedim(1, -1)
        y = function(classes_last.reshape(-1, x.shape[1]), *(t.flatten() for t in target))
        return y if target else y.view(classes_last.shape).movedim(-1, 1)

    return on_rows


OWN = (
    Provider("ours", ours),
    Provider("ours in place", ours_in_place, overwrites_logits=True),
)
LIGER = ("liger_kernel", "liger-kernel")
QUACK = ("quack", "quack-kernels")
PEERS = {
    "eager": (Provider("eager", eager),),
    "compile": (Provider("compile", compiled),),
    "liger": (Provider("liger", liger, *LIGER, overwrites_logits=True),),
    "quack": (
        Provider("quack", quack, *QUACK),
        Provider("quack in place", quack_in_place, *QUACK, overwrites_logits=True),
    ),
}


def providers_of(peers: Iterable[str] | None, device: str) -> list[Provider]:
    """This library and the named peers, or all installed ones."""
    found = list(OWN)
    for name in PEERS if peers is None else dict.fromkeys(peers):
        for provider in PEERS[name]:
            runs_here = provider.module is None or device == "cuda"
            if peers is not None and not runs_here:
                raise UserError(f"argument --peers: {name} needs --device cuda, got {device}")
            if peers is not None and not provider.is_installed:
                raise UserError(
                    f"argument --peers: {name} needs the package {provider.distribution}, "
                    "which is not installed"
                )
            if runs_here and provider.is_installed:
                found.append(provider)
    return found
