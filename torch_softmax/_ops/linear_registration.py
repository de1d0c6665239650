"""How operators are registered that are composed of other operators, alike on every device."""

from collections.abc import Callable
from typing import Any

import torch

from torch_softmax._ops.registration import refuse_derivatives


def register_composed(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define the operator of ``schema`` and return it; ``fake`` allocates its result only."""
    stem, parenthesis, signature = schema.partition("(")
    name = f"torch_softmax::{stem}"

    def run(*args: Any) -> Any:
        refuse_derivatives(stem, args)
        # the operands have the dtypes that the products should take
        with torch.autocast(args[0].device.type, enabled=False):
            return implementation(*args)

    torch.library.define(name, parenthesis + signature)
    torch.library.impl(name, "CompositeExplicitAutograd", run)
    torch.library.register_fake(name, fake)
    torch.library.impl(name, "Autograd", torch.library.fallthrough_kernel)
    operator: Callable[..., Any] = getattr(torch.ops.torch_softmax, stem).default
    return operator
