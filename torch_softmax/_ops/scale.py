"""Scaling of a gradient that was computed before its factor was known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_softmax._ops import cpu_path
from torch_softmax._ops.inductor import register_lowering
from torch_softmax._ops.registration import define, register

scale_inplace = register("scale_inplace(Tensor(a!) x, Tensor factor) -> ()", lambda x, factor: None)


def _scale(x: Tensor, factor: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    return x * factor


def _empty_product(x: Tensor, factor: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    register_lowering()
    return torch.empty_like(x)


# The gradient x depends on inputs. A compiled backward that reads them raises for a second
# derivative; without them autograd would take that derivative for 0
scale = define(
    "scale(Tensor x, Tensor factor, Tensor[] inputs) -> Tensor",
    {"CompositeExplicitAutograd": _scale},
    _empty_product,
)


def scaled_gradient(gradient: Tensor, factor: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """A saved gradient times its factor, in its own memory where no other backward needs it.

    In a compiled function, a second derivative with respect to one of ``inputs`` raises.
    """
    if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():
        return scale(gradient, factor, list(inputs))
    # on the CPU, to see that the factor is 1, as usual, takes less time than to call an operator
    is_readable = type(factor) is Tensor and factor.is_cpu and not cpu_path.runs_kernels()
    if not (is_readable and factor.item() == 1):
        scale_inplace(gradient, factor)
    return gradient
