"""One provider on one case: preparation outside the timed region, and the timed calls."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_softmax.benchmark.cases import DTYPES, OPERATORS, Case
from torch_softmax.benchmark.providers import Function, Provider

IGNORE_INDEX = -100


class Inputs(NamedTuple):
    """The arguments of one call; ``dy`` is the gradient of a result that is not a scalar."""

    x: Tensor
    target: Tensor | None
    dy: Tensor | None


def make_inputs(case: Case, n_sets: int, device: str, seed: int) -> list[Inputs]:
    """Sets of random inputs; normal, because arithmetic on zeros can be faster."""
    generator = torch.Generator(device).manual_seed(seed)
    options: dict[str, Any] = {"device": device, "generator": generator}

    def normal() -> Tensor:
        return torch.randn(case.shape, dtype=DTYPES[case.dtype], **options)

    def one() -> Inputs:
        x = normal().requires_grad_(case.mode != "forward")
        if not OPERATORS[case.operator].has_target:
            return Inputs(x, None, None if case.mode == "forward" else normal())
        rows = (case.shape[0], *case.shape[2:])
        target = torch.randint(case.classes, rows, **options)
        if case.ignored:
            target[torch.rand(rows, **options) < case.ignored] = IGNORE_INDEX
        return Inputs(x, target, None)

    return [one() for _ in range(n_sets)]


class Workload:
    """The operator of a provider and its sets of inputs, one call per set."""

    def __init__(
        self, case: Case, provider: Provider, function: Function, inputs: Sequence[Inputs]
    ) -> None:
        self.name = provider.name
        self.overwrites_logits = provider.overwrites_logits
        self.inputs = inputs
        self._mode = case.mode
        self._function = function

    def prepare(self) -> list[tuple[Tensor, Inputs]]:
        """Inputs of the timed calls: logits, copied if they are overwritten, or for backward y."""
        if self._mode == "backward":
            return [(self._function(inputs.x), inputs) for inputs in self.inputs]
        # the backward of clone passes the gradient on without a copy
        return [
            (inputs.x.clone() if self.overwrites_logits else inputs.x, inputs)
            for inputs in self.inputs
        ]

    def run(self, prepared: Sequence[tuple[Tensor, Inputs]]) -> Tensor:
        """One call per prepared input; returns the result or gradient of the last one."""
        result: Any = None
        with torch.set_grad_enabled(self._mode != "forward"):
            for start, inputs in prepared:
                # freed before the next call, so only one result exists at a time
                result = None
                result = self._call(start, inputs)
        return result

    def _call(self, start: Tensor, inputs: Inputs) -> Tensor:
        if self._mode == "backward":
            return torch.autograd.grad(start, inputs.x, inputs.dy, retain_graph=True)[0]
        target = () if inputs.target is None else (inputs.target,)
        y = self._function(start, *target)
        if self._mode == "forward":
            return y
        return torch.autograd.grad(y, inputs.x, inputs.dy)[0]
