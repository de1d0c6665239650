"""The operators of cross-entropy in compiled code, which PyTorch's dispatcher calls directly.

``operators.cpp`` is compiled when the package is installed, if there is a compiler. With PyTorch's
operators, few rows would cost mostly calls, and many rows mostly intermediate results.
"""

import ctypes
import functools
from importlib.util import find_spec

OPERATORS = (
    "cross_entropy_loss",
    "cross_entropy_loss_inplace",
    "cross_entropy_forward",
    "cross_entropy_backward",
    "cross_entropy_backward_inplace",
)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, or None if it was not compiled, or does not load."""
    spec = find_spec("torch_softmax._cpu.operators")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError:
        # compiled on another machine, and a library that it needs is missing here
        return None
    library.register_operators.restype = ctypes.c_void_p
    library.remove_operators.argtypes = [ctypes.c_void_p]
    return library


class Registration:
    """Lets the library serve CPU tensors until ``remove``; registers nothing without it."""

    def __init__(self) -> None:
        library = load()
        self._handle = None if library is None else library.register_operators()
        self.operators = () if self._handle is None else OPERATORS

    def remove(self) -> None:
        """Let other implementations serve CPU tensors."""
        library = load()
        if library is not None and self._handle is not None:
            library.remove_operators(self._handle)


def is_available() -> bool:
    """Whether the library was compiled."""
    return load() is not None
