"""The cases to measure: operators, modes, shapes, and the bytes that each must move."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from torch_softmax._command_line import UserError

MODES = ("forward", "backward", "step")
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def softmax_passes(mode: str) -> int:
    """Forward reads x, writes y; backward reads dy and y, writes dx; a step does both."""
    return {"forward": 2, "backward": 3, "step": 5}[mode]


def log_softmax_passes(mode: str) -> int:
    """Forward reads x, writes y; backward reads dy and y, writes dx; a step does both."""
    return softmax_passes(mode)


def cross_entropy_passes(mode: str) -> int:
    """Forward reads the logits; a step reads them and writes their gradient.

    The gradient can be computed when a row is read, so the second read of kernels with a separate
    backward is not part of the floor. Neither are values with one entry per row.
    """
    return {"forward": 1, "step": 2}[mode]


class Operator(NamedTuple):
    """A function of the library, and its number of passes over the matrix by mode."""

    passes: Callable[[str], int]
    modes: tuple[str, ...]
    default_modes: tuple[str, ...]
    has_target: bool = False


OPERATORS = {
    "softmax": Operator(softmax_passes, MODES, ("forward", "backward")),
    "log_softmax": Operator(log_softmax_passes, MODES, ("forward", "backward")),
    # no backward mode: some providers compute the gradient in their forward
    "cross_entropy": Operator(
        cross_entropy_passes, ("forward", "step"), ("forward", "step"), has_target=True
    ),
}


@dataclass(frozen=True)
class Case:
    """One operator in one mode on one kind of input; the classes are axis 1."""

    operator: str
    mode: str
    shape: tuple[int, ...]
    dtype: str
    ignored: float = 0.0  # fraction of the rows

    @property
    def classes(self) -> int:
        return self.shape[1]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def input_bytes(self) -> int:
        return self.elements * DTYPES[self.dtype].itemsize

    @property
    def floor_bytes(self) -> int:
        """Bytes that the operator must read and write."""
        return OPERATORS[self.operator].passes(self.mode) * self.input_bytes


SWEEP_ELEMENTS = 2**28
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "small": [(128, 10), (1024, 10), (60_000, 10)],
    "imagenet": [(8192, 1000)],
    "llm": [(1024, 32_000)],
    "segmentation": [(8, 21, 256, 256)],
}
# too slow on a CPU
CUDA_SHAPES: dict[str, list[tuple[int, ...]]] = {
    "small": [(2**20, 10)],
    "llm": [
        (8192, 32_000),
        (1024, 128_256),
        (8192, 128_256),
        *((SWEEP_ELEMENTS // 2**power, 2**power) for power in range(10, 19)),
    ],
    "segmentation": [(16, 19, 512, 1024)],
}


def shapes_of(names: Iterable[str], device: str) -> list[tuple[int, ...]]:
    """The shapes given by ``--shapes``: groups, or sizes like 8x10 or 2x21x64x64."""
    shapes: list[tuple[int, ...]] = []
    for name in names:
        if name == "all":
            shapes += shapes_of(SHAPES, device)
        elif name in SHAPES:
            shapes += SHAPES[name]
            shapes += CUDA_SHAPES.get(name, []) if device == "cuda" else []
        elif re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", name, re.ASCII):
            shapes.append(tuple(int(size) for size in name.split("x")))
        else:
            raise UserError(
                f"argument --shapes: needs all, {', '.join(SHAPES)}, or sizes like 8x10, "
                f"got {name!r}"
            )
    return list(dict.fromkeys(shapes))


def cases_of(
    operators: Iterable[str],
    modes: Iterable[str] | None,
    shapes: Iterable[tuple[int, ...]],
    dtypes: Iterable[str],
    ignored: Iterable[float],
) -> list[Case]:
    """Every valid combination; only cross-entropy has rows to ignore."""
    return [
        Case(operator, mode, shape, dtype, share)
        for operator in operators
        for share in (ignored if OPERATORS[operator].has_target else (0.0,))
        for dtype in dtypes
        for shape in shapes
        for mode in modes or OPERATORS[operator].default_modes
        if mode in OPERATORS[operator].modes
    ]
