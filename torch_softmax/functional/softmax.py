"""Softmax and log-softmax along any axis."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from torch_softmax import _ops
from torch_softmax._layout import compute_dtype
from torch_softmax.functional.checks import (
    FLOATING,
    FLOATING_NAMES,
    ArgumentTypeError,
    as_dim,
    check_floating,
    check_tensor,
)
from torch_softmax.functional.kinds import autocast_widens, has_dtensor, is_strided


def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax along an axis, as :func:`torch.nn.functional.softmax` defines it.

    One kernel reads each row once (rows longer than a tile twice) and writes it once, with float32
    arithmetic whatever the storage dtype. Nested, jagged, masked, sparse and mkldnn tensors are
    passed to PyTorch's function.

    Args:
        input: Logits, any shape; float16, bfloat16, float32 or float64; any real dtype if ``dtype``
            is given. A DTensor may be sharded along any axis, and the result is like it.
        dim: Axis along which the result sums to 1.
        dtype: Dtype of the result; None keeps that of ``input``.

    Returns:
        Probabilities, contiguous, in the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor, or its dtype or ``dtype`` is not supported.
        IndexError: ``input`` has no axis ``dim``.

    Example:
        >>> softmax(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), dim=1)
        tensor([[0.5000, 0.5000],
                [0.2689, 0.7311]])
    """
    if has_torch_function_unary(input):
        result: Tensor = handle_torch_function(softmax, (input,), input, dim, dtype)
        return result
    check_tensor("softmax", "input", input)
    if not is_strided(input):
        return torch.softmax(input, dim, dtype)
    dim = as_dim("softmax", input, dim)
    dtype = _softmax_dtype("softmax", input, dtype)
    if has_dtensor(input):
        # imported with the first DTensor
        from torch_softmax.distributed.dtensor_softmax import dtensor_softmax

        return dtensor_softmax("softmax", _as_floating(input, dtype), dim, dtype)
    return _ops.softmax(_as_floating(input, dtype), dim, dtype)


def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Logarithm of softmax, as :func:`torch.nn.functional.log_softmax` defines it.

    Args:
        input: As for :func:`softmax`.
        dim: Axis along which the exponentials of the result sum to 1.
        dtype: As for :func:`softmax`.

    Returns:
        Log-probabilities, contiguous, in the shape of ``input``.

    Raises:
        TypeError: As for :func:`softmax`.
        IndexError: As for :func:`softmax`.

    Example:
        >>> log_softmax(torch.zeros(1, 2), dim=1)
        tensor([[-0.6931, -0.6931]])
    """
    if has_torch_function_unary(input):
        result: Tensor = handle_torch_function(log_softmax, (input,), input, dim, dtype)
        return result
    check_tensor("log_softmax", "input", input)
    if not is_strided(input):
        return torch.log_softmax(input, dim, dtype)
    dim = as_dim("log_softmax", input, dim)
    dtype = _softmax_dtype("log_softmax", input, dtype)
    if has_dtensor(input):
        # imported with the first DTensor
        from torch_softmax.distributed.dtensor_softmax import dtensor_softmax

        return dtensor_softmax("log_softmax", _as_floating(input, dtype), dim, dtype)
    return _ops.log_softmax(_as_floating(input, dtype), dim, dtype)


def _as_floating(input: Tensor, dtype: torch.dtype) -> Tensor:
    return input if input.dtype in FLOATING else input.to(dtype)


def _softmax_dtype(name: str, input: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        if dtype not in FLOATING or input.is_complex():
            raise ArgumentTypeError(
                f"{name} needs dtype to be {FLOATING_NAMES} and input to be real, "
                f"got {dtype} and {input.dtype}"
            )
        return dtype
    check_floating(name, "input", input)
    # under autocast PyTorch computes softmax in float32 on a GPU, but not on a CPU
    widens = input.device.type != "cpu" and autocast_widens(input)
    return compute_dtype(input.dtype) if widens else input.dtype
