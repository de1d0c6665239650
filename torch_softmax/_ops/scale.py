"""Scaling of a gradient that was computed before its factor was known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_softmax._ops import registration
from torch_softmax._ops.inductor import register_lowering
from torch_softmax._ops.registration import refuse_derivatives, register

scale_inplace = register("scale_inplace(Tensor(a!) x, Tensor factor) -> ()", lambda x, factor: None)

# The gradient x depends on inputs. A compiled backward that reads them raises for a second
# derivative; without them autograd would take that derivative for 0
torch.library.define("torch_softmax::scale", "(Tensor x, Tensor factor, Tensor[] inputs) -> Tensor")


@torch.library.impl("torch_softmax::scale", "CompositeExplicitAutograd")
def _(x: Tensor, factor: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    refuse_derivatives("scale", (x, factor))
    return x * factor


@torch.library.register_fake("torch_softmax::scale")
def _(x: Tensor, factor: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    refuse_derivatives("scale", (x, factor))
    register_lowering()
    return torch.empty_like(x)


torch.library.impl("torch_softmax::scale", "Autograd", torch.library.fallthrough_kernel)
scale = torch.ops.torch_softmax.scale.default


def scaled_gradient(gradient: Tensor, factor: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """A saved gradient times its factor, in its own memory where no other backward needs it.

    In a compiled function, a second derivative with respect to one of ``inputs`` raises.
    """
    if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():
        return scale(gradient, factor, list(inputs))
    # on the CPU, to see that the factor is 1, as usual, takes less time than to call an operator
    is_readable = type(factor) is Tensor and factor.is_cpu and not registration.INTERPRETED
    if not (is_readable and factor.item() == 1):
        scale_inplace(gradient, factor)
    return gradient
