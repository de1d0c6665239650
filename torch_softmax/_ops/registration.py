"""Registration of operators, and the conditions for using their ``autograd.Function``."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from torch_softmax import _cpu
from torch_softmax._layout import with_collapsible_batch_dims, with_layout_of
from torch_softmax._ops import cpu_path

# devices that Triton serves
TRITON_DEVICES = ("cuda", "xpu")


def register(
    schema: str, fake: Callable[..., Any], *, takes_any_layout: bool = False
) -> Callable[..., Any]:
    """Define the operator of ``schema`` with an implementation for each device, and return it.

    ``fake`` allocates the results without computing them. The implementations in Python take a
    first argument whose batch dims collapse into two; with ``takes_any_layout`` the operator copies
    it if needed.

    One stem names an operator in every layer: ``softmax_forward`` is ``_cpu.softmax_forward`` for
    CPU tensors, and ``_launch.launch_softmax_forward`` where Triton serves the device. Compiled
    code for the CPU, where there is some, has the same names.
    """
    stem = _stem(schema)

    def run(implementation: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        if takes_any_layout and args[0].dim() > 3:
            return _on_collapsible_rows(implementation, *args, **kwargs)
        return implementation(*args, **kwargs)

    def launch(*args: Any, **kwargs: Any) -> Any:
        return run(_launcher(stem), args, kwargs)

    def run_on_cpu(*args: Any, **kwargs: Any) -> Any:
        return run(getattr(_cpu, stem), args, kwargs)

    for path, implementation in (("interpreted", launch), ("uncompiled", run_on_cpu)):
        cpu_path.implementations[path][stem] = refusing(stem, implementation)
    return define(schema, {TRITON_DEVICES: launch}, fake)


def register_composed(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define an operator that is composed of other operators, alike on every device."""

    def run(*args: Any) -> Any:
        # the operands have the dtypes that the products should take
        with torch.autocast(args[0].device.type, enabled=False):
            return implementation(*args)

    return define(schema, {"CompositeExplicitAutograd": run}, fake)


def define(
    schema: str, implementations: dict[Any, Callable[..., Any]], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define an operator without a derivative, by its implementations for devices or keys."""
    stem = _stem(schema)
    name = f"torch_softmax::{stem}"

    torch.library.define(name, schema.removeprefix(stem))
    for key, implementation in implementations.items():
        torch.library.impl(name, key, refusing(stem, implementation))
    torch.library.register_fake(name, refusing(stem, fake))
    # the derivatives are those of the Functions; PyTorch's default for none costs 15 us a call
    torch.library.impl(name, "Autograd", torch.library.fallthrough_kernel)
    operator: Callable[..., Any] = getattr(torch.ops.torch_softmax, stem).default
    return operator


def _stem(schema: str) -> str:
    return schema.partition("(")[0]


def _on_collapsible_rows(
    implementation: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """The results, of which a gradient of ``x`` takes the layout of ``x``."""
    results = implementation(with_collapsible_batch_dims(x), *args, **kwargs)
    if isinstance(results, Tensor):
        return with_layout_of(results, x)
    return tuple(with_layout_of(y, x) if y.shape == x.shape else y for y in results)


@functools.cache
def _launcher(stem: str) -> Callable[..., Any]:
    # imported with the first tensor that needs it: the package works where Triton does not
    from torch_softmax import _launch

    launcher: Callable[..., Any] = getattr(_launch, f"launch_{stem}")
    return launcher


def refusing(stem: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """``implementation``, which raises for arguments that need a derivative."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            refuse_derivatives(stem, (*args, *kwargs.values()))
        return implementation(*args, **kwargs)

    return run


def refuse_derivatives(stem: str, args: tuple[Any, ...]) -> None:
    """Raise where autograd would take the operator, which has no derivative, for a constant."""
    for x in args:
        if isinstance(x, Tensor) and x.requires_grad:
            raise RuntimeError(
                f"torch_softmax::{stem} has no derivative of its own: call the functions of "
                "torch_softmax, and take second derivatives outside torch.compile"
            )


_SERVED_TYPES = (Tensor, Parameter)


def takes_functions(*tensors: Tensor | None) -> bool:
    """Whether the ``autograd.Function`` classes serve the tensors; otherwise ``reference`` does.

    A subclass of Tensor, such as DTensor, supports only PyTorch's own operators.
    """
    for x in tensors:
        if x is not None and type(x) not in _SERVED_TYPES:
            return False
    # asked here, so that torch.compile guards it
    return forward_ad._current_level < 0 and is_plain_reverse_mode()


def is_plain_reverse_mode() -> bool:
    """Whether no transform is active but reverse mode, which an ``autograd.Function`` supports.

    The callers check the level of forward mode themselves, so that torch.compile guards it. Under
    torch.func, in forward mode, and while a graph of PyTorch's own operators is traced
    (torch.export, make_fx, torch.jit.trace), the functions call ``reference``, which PyTorch
    differentiates, maps and exports by itself. A Function's own rules for these are ignored in
    compiled regions (pytorch issues 186303, 192985, 197867) and have no second order.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_exporting()
        and torch._C._get_dispatch_mode(_MODES.PROXY) is None
        and torch._C._get_dispatch_mode(_MODES.FUNCTIONAL) is None
        and not torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
        and not torch._C._is_tracing()
    )


def needs_differentiable_backward(*gradients: Tensor | None) -> bool:
    """Whether the backward of a Function must consist of operators that PyTorch differentiates.

    It must for ``create_graph=True``, and for a batch of gradients in one backward.
    """
    # False while torch.compile traces a Function; compiled autograd says what is asked for
    if torch.is_grad_enabled():
        return True
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0 or not is_plain_reverse_mode():
        return True
    return any(map(is_batched, gradients))


def is_batched(gradient: Tensor | None) -> bool:
    """Whether autograd computes a batch of gradients in one backward."""
    # torch.compile cannot trace the question, and traces no such batch
    if gradient is None or torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_legacy_batchedtensor(gradient)


_MODES = torch._C._TorchDispatchModeKey
# torch.compile evaluates the function while it traces, inside the transforms of the traced code,
# and keeps the result. torch.compiler.assume_constant_result sets the same attribute, but its
# import takes a second
is_plain_reverse_mode._dynamo_marked_constant = True  # type: ignore[attr-defined]
