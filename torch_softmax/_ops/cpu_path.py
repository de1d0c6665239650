"""The choice of what serves CPU tensors, made when the package is imported, and by tests."""

import os
from collections.abc import Callable
from typing import Any

import torch

from torch_softmax._cpu import library

# the implementations in Python, by path and operator; "compiled" has compiled code before those of
# "uncompiled"
implementations: dict[str, dict[str, Callable[..., Any]]] = {"interpreted": {}, "uncompiled": {}}

# Triton's interpreter runs the kernels on CPU tensors, for tests without a GPU. Triton reads the
# variable when it is imported, so it applies to the whole process
DEFAULT = "interpreted" if os.environ.get("TRITON_INTERPRET") == "1" else "compiled"

_path = ""
_remove: list[Callable[[], None]] = []


def take(path: str) -> None:
    """Let a path serve CPU tensors: "compiled", "uncompiled" or "interpreted"."""
    global _path
    if path == _path:
        return
    for remove in _remove:
        remove()
    _remove.clear()
    _path = path
    names: tuple[str, ...] = ()
    if path == "compiled":
        registration = library.Registration()
        names = registration.operators
        _remove.append(registration.remove)
    in_python = torch.library.Library("torch_softmax", "IMPL")
    _remove.append(in_python._destroy)
    for name, implementation in implementations.get(path, implementations["uncompiled"]).items():
        if name not in names:
            in_python.impl(name, implementation, "CPU")


def runs_kernels() -> bool:
    """Whether the interpreter runs the kernels on CPU tensors."""
    return _path == "interpreted"
