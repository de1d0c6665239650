"""How every operator is registered, and how its ``autograd.Function`` is applied."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from torch_softmax import _cpu

# Triton's interpreter runs the kernels on CPU tensors: how they are tested without a GPU. Triton
# binds the variable when it is imported, so that it holds for the whole process
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# devices that Triton serves
TRITON_DEVICES = ("cuda", "xpu")


def register(schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define the operator of ``schema`` and return it; ``fake`` allocates its result only.

    One stem names an operator in every layer: ``softmax_forward`` is ``_cpu.softmax_forward`` for
    CPU tensors, and ``_launch.launch_softmax_forward`` where Triton serves the device.
    """
    stem, parenthesis, signature = schema.partition("(")
    name = f"torch_softmax::{stem}"

    def launch(*args: Any) -> Any:
        return launcher(stem)(*args)

    def run_on_cpu(*args: Any) -> Any:
        return launch(*args) if INTERPRETED else getattr(_cpu, stem)(*args)

    torch.library.define(name, parenthesis + signature)
    torch.library.impl(name, "cpu", run_on_cpu)
    torch.library.impl(name, TRITON_DEVICES, launch)
    torch.library.register_fake(name, fake)
    # the derivatives are those of the Functions; PyTorch's stand-in for none costs 15 us a call
    torch.library.impl(name, "Autograd", torch.library.fallthrough_kernel)
    operator: Callable[..., Any] = getattr(torch.ops.torch_softmax, stem).default
    return operator


def launcher(stem: str) -> Callable[..., Any]:
    """What starts the kernels of an operator."""
    # imported with the first tensor that needs it: the package works where Triton does not
    from torch_softmax import _launch

    launch: Callable[..., Any] = getattr(_launch, f"launch_{stem}")
    return launch


class WithoutForwardMode:
    """Mixed into a Function: the same without ``jvp``, which torch.compile does not trace."""

    jvp = staticmethod(Function.jvp)


def apply(function: type[Function], traced: type[Function], *args: Any) -> Any:
    """Apply a Function: its form ``traced``, without ``jvp``, under torch.compile.

    Forward mode under torch.compile would silently give 0 (pytorch issue 192985), and raises.
    """
    if torch.compiler.is_compiling():
        if forward_ad._current_level >= 0:
            raise RuntimeError(
                "torch_softmax needs torch.compile without forward mode: "
                "torch.compile(torch.func.jvp) would silently give 0; take the jvp outside, "
                "or torch.func.vjp"
            )
        return traced.apply(*args)
    if not is_eager():
        return function.apply(*args)
    if not torch.is_grad_enabled() or not any(
        isinstance(arg, Tensor) and arg.requires_grad for arg in args
    ):
        return function.forward(*args)
    # as Function.apply, but for the transforms that is_eager excludes: preparing for them, it
    # inspects the signature of forward, which takes 25 us
    return super(Function, function).apply(*args)  # type: ignore[misc]


def is_eager() -> bool:
    """Whether operators run as they are called, with reverse mode at most to record them."""
    return (
        not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
        and not torch._C._is_tracing()
    )


def takes_cpu_path(x: Tensor) -> bool:
    """Whether operators on ``x`` are those of ``_cpu``."""
    return x.is_cpu and not INTERPRETED


def takes_kernels(x: Tensor) -> bool:
    """Whether operators on ``x`` are Triton kernels."""
    return x.device.type in TRITON_DEVICES or (x.is_cpu and INTERPRETED)


def batch_first(
    batch_size: int, in_dims: Sequence[int | None], *tensors: Tensor | None
) -> list[Any]:
    """The tensors that vmap passes, its axis first: expanded where a tensor had none."""
    return [
        tensor
        if tensor is None
        else tensor.expand(batch_size, *tensor.shape)
        if in_dim is None
        else tensor.movedim(in_dim, 0)
        for tensor, in_dim in zip(tensors, in_dims, strict=True)
    ]
