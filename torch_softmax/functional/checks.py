"""Checks of arguments: each error names the argument, the requirement and the value."""

import math
import numbers
import operator
from typing import Any, get_args

import torch
from torch import Tensor

from torch_softmax._layout import compute_dtype
from torch_softmax._options import LossOptions, Reduction
from torch_softmax.functional.kinds import is_strided

REDUCTIONS = get_args(Reduction)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1
FLOATING_NAMES = "float16, bfloat16, float32 or float64"
# above the rounding error of a sum of bfloat16 probabilities, far below that of mistaken logits
ROUNDING_OF_PROBABILITIES = 0.01


class ArgumentTypeError(TypeError, RuntimeError):
    """An argument of the wrong type; also a RuntimeError, which PyTorch raises here."""


class ArgumentValueError(ValueError, RuntimeError):
    """An argument out of range; also a RuntimeError, which PyTorch raises here."""


class ArgumentIndexError(IndexError, RuntimeError):
    """A nonexistent axis or class; also a RuntimeError, which PyTorch raises here."""


def check_tensor(function: str, argument: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"{function} needs {argument} to be a Tensor, got {type(value).__name__}"
        )


def check_floating(function: str, argument: str, tensor: Tensor) -> None:
    """Raise TypeError unless the dtype is one of FLOATING."""
    if tensor.dtype not in FLOATING:
        raise ArgumentTypeError(
            f"{function} needs {argument} to be {FLOATING_NAMES}, got {tensor.dtype}"
        )


def as_dim(function: str, input: Tensor, dim: Any) -> int:
    """``dim`` as an int; raise IndexError unless ``input`` has that axis. A scalar has one axis."""
    dim = as_int(function, "dim", dim)
    axes = max(input.dim(), 1)
    if not -axes <= dim < axes:
        raise IndexError(f"{function} needs dim in [{-axes}, {axes}), got {dim}")
    return dim


def as_int(function: str, argument: str, value: Any) -> int:
    """An integer as an int; NumPy integers and 0-dim integer tensors are accepted."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = value
    if not isinstance(value, Tensor) and getattr(value, "ndim", None) == 0:
        # NumPy's; torch.compile traces neither item() nor operator.index for its integers
        number = value.tolist()
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)
    except TypeError:
        raise ArgumentTypeError(f"{function} needs {argument} of type int, got {value!r}") from None


def as_number(function: str, argument: str, value: Any) -> float:
    """A finite number of any kind as a float or int: NumPy's, or a tensor with no axes."""
    # the usual case first: whether a class is a kind of number takes longer to find out
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
        if value.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise ArgumentTypeError(
                f"{function} needs {argument} to be a constant, got a tensor that requires grad: "
                "multiply the logits or the loss by it instead"
            )
        value = value.item()
    elif isinstance(getattr(value, "ndim", None), int) and value.ndim == 0:
        # NumPy's array of one number
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(f"{function} needs {argument} of type float, got {value!r}")
    if not isinstance(value, (int, float)):
        value = float(value)
    # not math.isfinite: torch.compile cannot trace it with a symbolic number
    if not -math.inf < value < math.inf:
        raise ArgumentValueError(f"{function} needs {argument} to be finite, got {value}")
    return value


def check_strided(function: str, argument: str, tensor: Tensor) -> None:
    """Raise TypeError for a tensor without strides, such as a sparse one."""
    check_tensor(function, argument, tensor)
    if not is_strided(tensor):
        raise ArgumentTypeError(
            f"{function} needs {argument} to be a strided tensor, got {_kind(tensor)}"
        )


def check_torch_options(
    function: str, input: Tensor, options: LossOptions, denominator: Any, inplace: bool
) -> None:
    """Raise TypeError for options that PyTorch's function does not have."""
    _, _, _, *own_options = options
    if own_options != [0, None, 1] or denominator is not None or inplace:
        raise ArgumentTypeError(
            f"{function} needs a strided input for z_loss, softcap, logit_scale, denominator and "
            f"inplace, got {_kind(input)}"
        )


def _kind(x: Tensor) -> str:
    return "a nested tensor" if x.is_nested else f"{type(x).__name__} of layout {x.layout}"


def check_cross_entropy_tensors(
    function: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    min_classes: int = 1,
) -> None:
    """Raise unless dtypes, shapes and devices of the tensors agree."""
    check_tensor(function, "input", input)
    check_tensor(function, "target", target)
    check_floating(function, "input", input)
    size = input.shape
    if not size:
        raise ArgumentValueError(f"{function} needs input to have a class axis, got a scalar")
    if size[1 if len(size) > 1 else 0] < min_classes:
        raise ArgumentIndexError(
            f"{function} needs input with at least one class, got shape {tuple(size)}"
        )
    if target.is_complex() or target.dtype == torch.bool:
        raise ArgumentTypeError(
            f"{function} needs target to be class indices of an integer type or probabilities, "
            f"got {target.dtype}"
        )
    shape: tuple[int, ...]
    if target.is_floating_point():
        check_floating(function, "target", target)
        shape, kind = size, "probabilities"
        if ignore_index >= 0:
            raise ArgumentValueError(
                f"{function} needs target to be class indices for ignore_index, "
                f"got probabilities and {ignore_index}"
            )
    else:
        shape, kind = _batch_of(size), "class indices"
    if target.shape != shape:
        raise ArgumentValueError(
            f"{function} needs target of shape {tuple(shape)} if it holds {kind} for input of "
            f"shape {tuple(size)}, got {tuple(target.shape)}"
        )
    check_device(function, "target", target, input)
    if weight is not None:
        check_weight(function, weight, input)


def needs_checks(input: Any, target: Any, weight: Any, denominator: Any) -> bool:
    """False for a matrix of logits and class indices, as most callers have them.

    For few rows, the general checks take longer than the loss.
    """
    return not (
        weight is denominator is None
        and type(input) is type(target) is Tensor
        and input.dtype in FLOATING
        and target.dtype is torch.int64
        and is_strided(input)
        and input.dim() == 2
        and target.dim() == 1
        and input.size(0) == target.size(0)
        and input.size(1) > 0
        and input.device == target.device
    )


def _batch_of(size: torch.Size) -> torch.Size:
    """The shape of the rows: the size of the input without its class axis."""
    return size[:1] + size[2:] if len(size) > 1 else size[:0]


def check_weight(function: str, weight: Tensor, input: Tensor) -> None:
    """Raise unless ``weight`` holds one factor per class."""
    check_tensor(function, "weight", weight)
    check_floating(function, "weight", weight)
    n_classes = input.shape[min(input.dim() - 1, 1)]
    if weight.shape != (n_classes,):
        raise ArgumentValueError(
            f"{function} needs weight of shape ({n_classes},), one per class, "
            f"got {tuple(weight.shape)}"
        )
    check_device(function, "weight", weight, input)


def check_device(function: str, argument: str, tensor: Tensor, input: Tensor) -> None:
    """Raise ValueError unless both tensors are on the same device."""
    if tensor.device != input.device:
        raise ArgumentValueError(
            f"{function} needs {argument} on {input.device} beside input, got {tensor.device}"
        )


def as_loss_options(
    function: str,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    logit_scale: Any,
) -> LossOptions:
    """The options as Python numbers; raise unless each is in its range."""
    # valid numbers of the usual type take no call: few rows cost mostly calls
    if not (type(ignore_index) is int and MIN_INT64 <= ignore_index <= MAX_INT64):
        ignore_index = as_int(function, "ignore_index", ignore_index)
        if not MIN_INT64 <= ignore_index <= MAX_INT64:
            raise ArgumentValueError(f"{function} needs ignore_index in int64, got {ignore_index}")
    if reduction not in REDUCTIONS:
        raise ArgumentValueError(
            f"{function} needs reduction to be 'mean', 'sum' or 'none', got {reduction!r}"
        )
    if not (type(label_smoothing) is float and 0 <= label_smoothing <= 1):
        label_smoothing = as_number(function, "label_smoothing", label_smoothing)
        if not 0 <= label_smoothing <= 1:
            raise ArgumentValueError(
                f"{function} needs label_smoothing in [0, 1], got {label_smoothing}"
            )
    if not (type(z_loss) is float and 0 <= z_loss < math.inf):
        z_loss = as_number(function, "z_loss", z_loss)
        if z_loss < 0:
            raise ArgumentValueError(f"{function} needs z_loss of at least 0, got {z_loss}")
    if not (type(logit_scale) is float and -math.inf < logit_scale < math.inf):
        logit_scale = as_number(function, "logit_scale", logit_scale)
    if softcap is not None:
        softcap = as_number(function, "softcap", softcap)
        if softcap <= 0:
            raise ArgumentValueError(f"{function} needs softcap above 0 or None, got {softcap}")
    return LossOptions(ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)


def as_denominator(function: str, denominator: Any, reduction: str, input: Tensor) -> Tensor | None:
    """``denominator`` as a tensor on the device of ``input``, without reading its value."""
    if denominator is None:
        return None
    if reduction != "mean":
        raise ArgumentValueError(
            f"{function} needs denominator=None for reduction={reduction!r}, got {denominator!r}"
        )
    if not isinstance(denominator, Tensor):
        number = as_number(function, "denominator", denominator)
        return torch.full((), number, dtype=compute_dtype(input.dtype), device=input.device)
    if denominator.dim() or denominator.is_complex() or denominator.dtype == torch.bool:
        raise ArgumentValueError(
            f"{function} needs denominator to be a real number or a tensor with no axes, "
            f"got shape {tuple(denominator.shape)} and {denominator.dtype}"
        )
    check_device(function, "denominator", denominator, input)
    return denominator


def check_count(function: str, argument: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is an integer, ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{function} needs {argument} of type int, got {value!r}")
    if value < 1:
        raise ArgumentValueError(f"{function} needs {argument} of at least 1, got {value}")


def check_classified_rows(function: str, argument: str, rows: Tensor, target: Tensor) -> None:
    """Raise unless ``rows`` is a matrix with a column per class and ``target`` a class per row.

    Unlike the checks of the operators, this one reads the targets and waits for their device.
    """
    check_tensor(function, argument, rows)
    check_tensor(function, "target", target)
    check_floating(function, argument, rows)
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ArgumentValueError(
            f"{function} needs {argument} of shape (rows, classes), got {tuple(rows.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ArgumentTypeError(
            f"{function} needs target to be class indices of an integer type, got {target.dtype}"
        )
    if target.shape != rows.shape[:1]:
        raise ArgumentValueError(
            f"{function} needs target of shape ({len(rows)},), one class per row, "
            f"got {tuple(target.shape)}"
        )
    if target.device != rows.device:
        raise ArgumentValueError(
            f"{function} needs target on {rows.device} beside {argument}, got {target.device}"
        )
    outside = target[(target.long() < 0) | (target.long() >= rows.shape[1])]
    if len(outside):
        raise IndexError(
            f"{function} needs target in [0, {rows.shape[1]}), got {outside[0].item()}"
        )


def check_probabilities(function: str, probabilities: Tensor) -> None:
    """Raise ValueError unless each row is a probability distribution, up to rounding."""
    if not len(probabilities):
        return
    total = probabilities.double().sum(1)
    worst = total[(total - 1).abs().argmax()].item()
    # written so that NaN fails the comparison
    if not abs(worst - 1) <= ROUNDING_OF_PROBABILITIES:
        raise ArgumentValueError(
            f"{function} needs probabilities that sum to 1 in each row, got a sum of {worst:.6g}"
        )
    least = probabilities.min().item()
    if not least >= -ROUNDING_OF_PROBABILITIES:
        raise ArgumentValueError(f"{function} needs probabilities of at least 0, got {least:.6g}")
