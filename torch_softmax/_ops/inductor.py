"""torch.compile's form of ``scale``: it works in the memory of the gradient that it scales.

A compiled backward receives the gradient that the forward pass formed as an input that nothing
else reads, a donated buffer. Inductor reuses such memory for its own pointwise kernels, but takes
the result of a custom operator for new memory, which costs two more passes over the gradient.
"""

import sys
from typing import Any

import torch

_registered = False


def register_lowering() -> None:
    """Tell Inductor how to lower ``scale``, once it is imported: fake tensors come that way."""
    global _registered
    if _registered or "torch._inductor.lowering" not in sys.modules:
        return
    _registered = True
    from torch._inductor import ir, lowering

    operators = torch.ops.torch_softmax
    to_new_memory = lowering.fallback_handler(operators.scale.default, add_to_fallback_set=False)

    @lowering.register_lowering(operators.scale.default, type_promotion_kind=None)
    def scale(x: Any, factor: Any) -> Any:
        if not _is_donated(x):
            return to_new_memory(x, factor)
        ir.FallbackKernel.create(operators.scale_inplace.default, x, factor)
        return x


def _is_donated(x: Any) -> bool:
    """Whether nothing but the operator that is being lowered reads the memory of ``x``."""
    from torch._inductor.ir import DonatedBuffer
    from torch._inductor.virtualized import V

    argument: Any = V.graph.current_node.args[0]
    is_input = isinstance(getattr(x.data, "data", None), DonatedBuffer)
    return is_input and argument.op == "placeholder" and len(argument.users) == 1
