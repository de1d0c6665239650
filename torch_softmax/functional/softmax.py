"""Softmax and log-softmax along any axis."""

import torch
from torch import Tensor

from torch_softmax import _ops
from torch_softmax._layout import compute_dtype
from torch_softmax.functional.checks import (
    FLOATING,
    FLOATING_NAMES,
    ArgumentTypeError,
    check_dim,
    check_floating,
    check_tensor,
)


def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax along an axis, as :func:`torch.nn.functional.softmax` defines it.

    One kernel reads each row once (rows too long for a block twice) and writes it once, with
    float32 arithmetic whatever is stored.

    Args:
        input: Logits, any shape; float16, bfloat16, float32 or float64, or anything with ``dtype``.
        dim: Axis along which the result sums to 1.
        dtype: Type of the result; None keeps that of ``input``.

    Returns:
        Probabilities, in the shape of ``input``.

    Raises:
        TypeError: ``input`` is no tensor, or it or ``dtype`` is not one of the four types.
        IndexError: ``input`` has no axis ``dim``.

    Example:
        >>> softmax(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), dim=1)
        tensor([[0.5000, 0.5000],
                [0.2689, 0.7311]])
    """
    dtype = _softmax_dtype("softmax", input, dtype)
    check_dim("softmax", input, dim)
    y = _ops.softmax(_class_axis_last(input, dim, dtype), dtype)
    return y.movedim(-1, dim).reshape(input.shape)


def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Logarithm of softmax, as :func:`torch.nn.functional.log_softmax` defines it.

    Args:
        input: As for :func:`softmax`.
        dim: Axis along which the exponentials of the result sum to 1.
        dtype: As for :func:`softmax`.

    Returns:
        Log-probabilities, in the shape of ``input``.

    Raises:
        TypeError: As for :func:`softmax`.
        IndexError: As for :func:`softmax`.

    Example:
        >>> log_softmax(torch.zeros(1, 2), dim=1)
        tensor([[-0.6931, -0.6931]])
    """
    dtype = _softmax_dtype("log_softmax", input, dtype)
    check_dim("log_softmax", input, dim)
    y = _ops.log_softmax(_class_axis_last(input, dim, dtype), dtype)
    return y.movedim(-1, dim).reshape(input.shape)


def _class_axis_last(input: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    x = input if input.dtype in FLOATING else input.to(dtype)
    # a scalar is a row of one class
    return x.movedim(dim, -1) if x.dim() else x.reshape(1)


def _softmax_dtype(name: str, input: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    check_tensor(name, "input", input)
    if dtype is not None:
        if dtype not in FLOATING or input.is_complex():
            raise ArgumentTypeError(
                f"{name} needs dtype to be {FLOATING_NAMES} and input to be real, "
                f"got {dtype} and {input.dtype}"
            )
        return dtype
    check_floating(name, "input", input)
    # under autocast PyTorch widens softmax on a GPU, and leaves it as it is on a CPU
    widened = input.device.type != "cpu" and torch.is_autocast_enabled(input.device.type)
    return compute_dtype(input.dtype) if widened else input.dtype
