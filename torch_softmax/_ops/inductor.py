"""Inductor lowering of ``scale`` that works in place on a donated gradient.

A compiled backward receives the gradient from the forward pass as a donated buffer, an input that
nothing else reads. Inductor reuses such memory for its own pointwise kernels, but allocates new
memory for the result of a custom operator, which costs two more passes over the gradient.
"""

import sys
from typing import Any

import torch

_registered = False


def register_lowering() -> None:
    """Register the lowering of ``scale`` once Inductor is imported; the fake kernel calls this."""
    global _registered
    if _registered or "torch._inductor.lowering" not in sys.modules:
        return
    _registered = True
    from torch._inductor import ir, lowering

    operators = torch.ops.torch_softmax
    to_new_memory = lowering.fallback_handler(operators.scale.default, add_to_fallback_set=False)

    @lowering.register_lowering(operators.scale.default, type_promotion_kind=None)
    def scale(x: Any, factor: Any, inputs: Any) -> Any:
        if not _is_donated(x):
            return to_new_memory(x, factor, inputs)
        ir.FallbackKernel.create(operators.scale_inplace.default, x, factor)
        return x


def _is_donated(x: Any) -> bool:
    """Whether the operator being lowered is the only reader of the memory of ``x``."""
    from torch._inductor.ir import DonatedBuffer
    from torch._inductor.virtualized import V

    argument: Any = V.graph.current_node.args[0]
    is_input = isinstance(getattr(x.data, "data", None), DonatedBuffer)
    return is_input and argument.op == "placeholder" and len(argument.users) == 1
