"""Derivatives that no kernel computes, taken by PyTorch from a function in plain PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# its annotation has a third result that only has_aux=True returns
_vjp: Callable[..., tuple[Any, Callable[..., Any]]] = torch.func.vjp  # type: ignore[assignment]


def backward_derivative(
    function: Callable[..., Any],
    primals: Sequence[Tensor | None],
    wanted: Sequence[bool],
    cotangent: Any,
) -> list[Tensor | None]:
    """Gradient of ``function`` in each primal that is wanted, None in the others."""
    indices = [i for i, is_wanted in enumerate(wanted) if is_wanted]
    _, transposed = _vjp(_of(function, primals, indices), *(primals[i] for i in indices))
    gradients: list[Tensor | None] = [None] * len(primals)
    for i, gradient in zip(indices, transposed(cotangent), strict=True):
        gradients[i] = gradient
    return gradients


def forward_derivative(
    function: Callable[..., Any],
    primals: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
) -> Any:
    """Derivative of ``function`` along the tangents; None is a primal that stays.

    It is the transpose of the transposed Jacobian: torch.func.jvp does not nest in forward mode.
    """
    indices = [i for i, tangent in enumerate(tangents) if tangent is not None]
    outputs, transposed = _vjp(_of(function, primals, indices), *(primals[i] for i in indices))
    _, product = _vjp(transposed, tree_map(torch.zeros_like, outputs))
    return product(tuple(tangents[i] for i in indices))[0]


def _of(
    function: Callable[..., Any], primals: Sequence[Tensor | None], indices: Sequence[int]
) -> Callable[..., Any]:
    """The function of the indexed arguments alone, with the others at ``primals``."""

    def of_indexed(*moved: Tensor) -> Any:
        arguments = list(primals)
        for i, primal in zip(indices, moved, strict=True):
            arguments[i] = primal
        return function(*arguments)

    return of_indexed
