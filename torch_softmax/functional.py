"""Public functions: check what the user passes, bring the class axis last, call, reduce."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torch_softmax import _ops
from torch_softmax._rows import compute_dtype

Reduction = Literal["mean", "sum", "none"]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATING_NAMES = "float16, bfloat16, float32 or float64"


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
    _check_dim("softmax", input, dim)
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
    _check_dim("log_softmax", input, dim)
    y = _ops.log_softmax(_class_axis_last(input, dim, dtype), dtype)
    return y.movedim(-1, dim).reshape(input.shape)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits, as :func:`torch.nn.functional.cross_entropy` defines it.

    Softmax, logarithm and loss are one pass over the logits, and their gradient is another: no
    matrix of probabilities is stored, and ``input`` is never written. Better than PyTorch: any
    integer target; the losses of half-precision logits are added up in float32.

    Args:
        input: Logits, shape ``(classes,)``, ``(rows, classes)`` or ``(rows, classes, d1, ...)``;
            float16, bfloat16, float32 or float64.
        target: Class of each row, in the shape of ``input`` without its class axis; any integer
            type, in ``[0, classes)`` or ``ignore_index``. On a GPU, where a check would have to
            wait for the device, another value makes the loss and gradient of its row NaN.
        weight: Factor per class, shape ``(classes,)``; None weighs every class 1.
        ignore_index: Target value whose rows cost nothing and receive zero gradient.
        reduction: ``"mean"``, the sum divided by the weights of the counted rows' targets,
            ``"sum"``, or ``"none"`` for one loss per row.
        label_smoothing: Share of each target that is spread evenly over the classes, in [0, 1].

    Returns:
        A scalar, or with ``reduction="none"`` the shape of ``target``; in the dtype of ``input``,
        float32 under autocast. The mean of no counted row is NaN.

    Raises:
        TypeError: An argument is of the wrong kind or dtype.
        ValueError: Shapes or devices disagree, ``reduction`` is unknown or ``label_smoothing``
            outside [0, 1].
        IndexError: A target on the CPU is neither a class nor ``ignore_index``.
        NotImplementedError: ``target`` holds probabilities.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    _check_cross_entropy_tensors(input, target, weight)
    _check_cross_entropy_options(ignore_index, reduction, label_smoothing)
    logits = input.movedim(1, -1) if input.dim() > 1 else input
    n_classes, dtype = logits.shape[-1], compute_dtype(input.dtype)
    weight = None if weight is None else weight.to(dtype)

    # int64 before the comparison: ignore_index may not exist in a narrower type, and would wrap
    ignored = target.long() == ignore_index
    index = target.long().masked_fill(ignored, 0)
    class_weight = None
    if label_smoothing > 0:
        class_weight = input.new_ones(n_classes, dtype=dtype) if weight is None else weight
    nll, smooth, _ = _ops.softmax_cross_entropy(logits, index, class_weight)

    loss, counted = nll, ~ignored
    if weight is not None:
        # on a GPU a target that is no class comes this far, and must not be looked up
        row_weight = weight[index.clamp(0, n_classes - 1)]
        loss, counted = row_weight * nll, row_weight.masked_fill(ignored, 0)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss + (label_smoothing / n_classes) * smooth
    loss = loss.masked_fill(ignored, 0)
    return _reduced(loss, counted, reduction).to(_loss_dtype(input))


def _reduced(loss: Tensor, counted: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return loss
    # the denominator stays on the device: reading it would stop the stream
    return loss.sum() if reduction == "sum" else loss.sum() / counted.sum()


def _loss_dtype(input: Tensor) -> torch.dtype:
    autocast = torch.is_autocast_enabled(input.device.type)
    return compute_dtype(input.dtype) if autocast else input.dtype


def _class_axis_last(input: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    x = input if input.dtype in FLOATING else input.to(dtype)
    # a scalar is a row of one class
    return x.movedim(dim, -1) if x.dim() else x.reshape(1)


def _softmax_dtype(name: str, input: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    _check_tensor(name, "input", input)
    if dtype is not None:
        if dtype not in FLOATING or input.is_complex():
            raise TypeError(
                f"{name} needs dtype to be {FLOATING_NAMES} and input to be real, "
                f"got {dtype} and {input.dtype}"
            )
        return dtype
    _check_floating(name, "input", input)
    # under autocast PyTorch widens softmax on a GPU, and leaves it as it is on a CPU
    widened = input.device.type != "cpu" and torch.is_autocast_enabled(input.device.type)
    return compute_dtype(input.dtype) if widened else input.dtype


def _check_dim(name: str, input: Tensor, dim: int) -> None:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{name} needs dim of type int, got {dim!r}")
    axes = max(input.dim(), 1)
    if not -axes <= dim < axes:
        raise IndexError(f"{name} needs dim in [{-axes}, {axes}), got {dim}")


def _check_cross_entropy_tensors(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    _check_tensor("cross_entropy", "input", input)
    _check_tensor("cross_entropy", "target", target)
    _check_floating("cross_entropy", "input", input)
    if target.is_floating_point():
        raise NotImplementedError(
            f"cross_entropy needs target to hold class indices, got {target.dtype}: "
            "probability targets are not supported yet"
        )
    if target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"cross_entropy needs target of an integer type, got {target.dtype}")
    if input.dim() == 0:
        raise ValueError("cross_entropy needs input to have a class axis, got a scalar")
    rows = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size()
    if target.shape != rows:
        raise ValueError(
            f"cross_entropy needs target of shape {tuple(rows)} for input of shape "
            f"{tuple(input.shape)}, got {tuple(target.shape)}"
        )
    if target.device != input.device:
        raise ValueError(
            f"cross_entropy needs target on {input.device} beside input, got {target.device}"
        )
    if weight is not None:
        _check_weight(weight, input)


def _check_weight(weight: Tensor, input: Tensor) -> None:
    _check_tensor("cross_entropy", "weight", weight)
    _check_floating("cross_entropy", "weight", weight)
    n_classes = input.shape[min(input.dim() - 1, 1)]
    if weight.shape != (n_classes,):
        raise ValueError(
            f"cross_entropy needs weight of shape ({n_classes},), one per class, "
            f"got {tuple(weight.shape)}"
        )
    if weight.device != input.device:
        raise ValueError(
            f"cross_entropy needs weight on {input.device} beside input, got {weight.device}"
        )


def _check_cross_entropy_options(ignore_index: int, reduction: str, label_smoothing: float) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"cross_entropy needs ignore_index of type int, got {ignore_index!r}")
    if reduction not in get_args(Reduction):
        raise ValueError(
            f"cross_entropy needs reduction to be 'mean', 'sum' or 'none', got {reduction!r}"
        )
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
        raise TypeError(
            f"cross_entropy needs label_smoothing of type float, got {label_smoothing!r}"
        )
    # written so that NaN fails too
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy needs label_smoothing in [0, 1], got {label_smoothing}")


def _check_tensor(name: str, argument: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} needs {argument} to be a Tensor, got {type(value).__name__}")


def _check_floating(name: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} needs {argument} to be {FLOATING_NAMES}, got {tensor.dtype}")
