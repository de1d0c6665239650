"""Cross-entropy with all its options."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torch_softmax import _ops
from torch_softmax._layout import collapse_batch_dims, compute_dtype
from torch_softmax._options import Reduction
from torch_softmax.functional.checks import (
    as_denominator,
    as_loss_options,
    check_cross_entropy_tensors,
    check_strided,
    check_torch_options,
    needs_checks,
)
from torch_softmax.functional.kinds import autocast_widens, has_dtensor, is_strided


class CrossEntropyStats(NamedTuple):
    """A loss, and the statistics of each row from the same pass over the logits.

    Attributes:
        loss: As :func:`cross_entropy` returns it.
        lse: log(sum(exp(logits))), in the shape of the rows; float32, float64 for float64.
            Differentiable, as are ``loss`` and ``entropy``.
        entropy: -sum(p * log(p)) of p = softmax(logits), from 0 to log(classes); as ``lse``.
        prediction: Index of the largest logit, int64, in the shape of the rows.
    """

    loss: Tensor
    lse: Tensor
    entropy: Tensor
    prediction: Tensor


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Cross-entropy of logits, as :func:`torch.nn.functional.cross_entropy` defines it.

    One pass over the logits computes the loss and its gradient, without a matrix of probabilities.
    With ``reduction="none"`` and for float16 the gradient is a second pass. Under torch.func, in
    forward mode and for second derivatives, PyTorch's own operators compute the loss. For a row
    with logits x, class t and weights w,

        logits = softcap * tanh(logit_scale * x / softcap), or logit_scale * x without softcap
        lse = log(sum(exp(logits)))
        loss = (1 - label_smoothing) * w[t] * (lse - logits[t])
               + label_smoothing / classes * sum(w * (lse - logits)) + z_loss * lse ** 2

    With target probabilities q, ``sum(w * q * (lse - logits))`` replaces ``w[t] * (lse -
    logits[t])``. Unlike PyTorch, class indices may have any integer type, losses of half-precision
    logits are summed in float32, and a class of probability 0 has loss 0 even if its logit is -inf.

    Args:
        input: Logits x, shape ``(classes,)``, ``(rows, classes)`` or ``(rows, classes, d1, ...)``;
            float16, bfloat16, float32 or float64. A DTensor may be sharded by classes and by rows;
            then plain ``target`` and ``weight`` are whole ones, and the loss is a DTensor.
        target: Class of each row, in the shape of ``input`` without its class axis; any integer
            type, in ``[0, classes)`` or ``ignore_index``. On a GPU an invalid class makes the loss
            and gradient of its row NaN, because a check would have to wait for the device. Or
            probabilities, in the shape of ``input``, which may require a gradient.
        weight: Factor per class, shape ``(classes,)``; None weighs every class 1.
        ignore_index: Target value whose rows have loss 0 and gradient 0.
        reduction: ``"mean"``, the sum divided by the total weight of the targets that are not
            ignored, or with probabilities by the number of rows; ``"sum"``; or ``"none"``, one loss
            per row.
        label_smoothing: Part of each target that is spread evenly over the classes, in [0, 1].
        z_loss: Factor of lse squared, which keeps the logits from drifting (PaLM, 2022).
        softcap: Bound on the absolute value of the logits, applied with tanh (Gemma 2, 2024).
        logit_scale: Factor of the logits, an inverse temperature.
        denominator: What the mean divides by instead of its own denominator, a number or a tensor
            with no axes beside ``input``: the tokens of all micro-batches, say. It is not read on
            the host. Only with ``reduction="mean"``.
        inplace: Whether the memory of ``input`` becomes its gradient, so that no other is taken:
            with this call, or with backward for ``reduction="none"``. A later use of ``input``
            raises in backward, as after any in-place operation, and so does one of another part of
            the tensor that ``input`` is a slice of; read it before. Without a gradient
            to compute, and under torch.compile, which plans memory itself, ``input`` is left alone.

    Returns:
        A scalar, or with ``reduction="none"`` the shape of the rows; in the dtype of ``input``,
        float32 under autocast. The mean of no counted row is NaN.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices disagree, or an option is out of range.
        IndexError: A target on the CPU is neither in ``[0, classes)`` nor ``ignore_index``.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    if has_torch_function_variadic(input, target, weight, denominator):
        loss: Tensor = handle_torch_function(
            cross_entropy,
            (input, target, weight, denominator),
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            logit_scale=logit_scale,
            denominator=denominator,
            inplace=inplace,
        )
        return loss
    options = as_loss_options(
        "cross_entropy", ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    if needs_checks(input, target, weight, denominator):
        if has_dtensor(input, target, weight, denominator):
            # imported with the first DTensor
            from torch_softmax.distributed.dtensor_cross_entropy import dtensor_cross_entropy

            tensors = (input, target, weight, denominator)
            return dtensor_cross_entropy("cross_entropy", tensors, options, inplace, False)[0]
        if isinstance(input, Tensor) and not is_strided(input):
            check_torch_options("cross_entropy", input, options, denominator, inplace)
            return torch_cross_entropy(
                input,
                target,
                weight,
                ignore_index=options.ignore_index,
                reduction=options.reduction,
                label_smoothing=options.label_smoothing,
            )
        check_cross_entropy_tensors("cross_entropy", input, target, weight, options.ignore_index)
    denominator = as_denominator("cross_entropy", denominator, options.reduction, input)
    # torch.compile plans memory itself
    inplace = inplace and not torch.compiler.is_compiling()
    logits = class_axis_last(donated(input) if inplace else input)
    target = class_axis_last(target) if target.is_floating_point() else target
    args = (logits, target, weight, denominator, options, loss_dtype(input))
    return _ops.cross_entropy_loss(*args, inplace)


def cross_entropy_with_stats(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
) -> CrossEntropyStats:
    """:func:`cross_entropy` with lse, entropy and prediction of each row, from the same pass.

    Loss, lse and entropy are differentiable. For reinforcement learning, ``reduction="none"`` gives
    the negative log-probability and the entropy of each row together.

    Args:
        input: Logits, as for :func:`cross_entropy`.
        target: Class indices or probabilities.
        weight: Factor per class.
        ignore_index: Target value of ignored rows, which have statistics too.
        reduction: Applies to ``loss`` only.
        label_smoothing: Applies to ``loss`` only.
        z_loss: Applies to ``loss`` only.
        softcap: The statistics are those of the logits after the softcap.
        logit_scale: The statistics are those of the scaled logits.
        denominator: Applies to ``loss`` only.
        inplace: Whether the gradient overwrites ``input``.

    Returns:
        :class:`CrossEntropyStats`.

    Raises:
        TypeError: As for :func:`cross_entropy`.
        ValueError: As for :func:`cross_entropy`.
        IndexError: As for :func:`cross_entropy`.

    Example:
        >>> cross_entropy_with_stats(torch.zeros(1, 4), torch.tensor([3])).entropy
        tensor([1.3863])
    """
    if has_torch_function_variadic(input, target, weight, denominator):
        stats: CrossEntropyStats = handle_torch_function(
            cross_entropy_with_stats,
            (input, target, weight, denominator),
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            logit_scale=logit_scale,
            denominator=denominator,
            inplace=inplace,
        )
        return stats
    name = "cross_entropy_with_stats"
    options = as_loss_options(
        name, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    if has_dtensor(input, target, weight, denominator):
        # imported with the first DTensor
        from torch_softmax.distributed.dtensor_cross_entropy import dtensor_cross_entropy

        tensors = (input, target, weight, denominator)
        return CrossEntropyStats(*dtensor_cross_entropy(name, tensors, options, inplace, True))
    check_strided(name, "input", input)
    check_cross_entropy_tensors(name, input, target, weight, options.ignore_index)
    denominator = as_denominator(name, denominator, options.reduction, input)
    # torch.compile plans memory itself
    inplace = inplace and not torch.compiler.is_compiling()
    logits = class_axis_last(donated(input) if inplace else input)
    target = class_axis_last(target) if target.is_floating_point() else target
    args = (logits, target, weight, denominator, options, loss_dtype(input))
    loss, rows = _ops.cross_entropy_with_rows(*args, True, inplace)
    return CrossEntropyStats(loss, rows.lse, rows.entropy, rows.prediction)


def class_axis_last(x: Tensor) -> Tensor:
    """``x`` with class axis 1 moved to the end; a matrix has it there."""
    return x.movedim(1, -1) if x.dim() > 2 else x


def donated(input: Tensor) -> Tensor:
    """``input``, or an alias of it to overwrite by its gradient."""
    if not (torch.is_grad_enabled() and input.requires_grad):
        return input
    if input.is_neg():
        raise ValueError("cross_entropy needs inplace=False for a negative view, got True")
    if input.retains_grad or (input._base is not None and input._base.retains_grad):
        raise ValueError(
            "cross_entropy needs inplace=False for input with retain_grad(): "
            "the memory of input becomes its gradient"
        )
    if collapse_batch_dims(class_axis_last(input)) is None:
        raise ValueError(
            "cross_entropy needs inplace=False for input whose batch dims do not collapse, "
            f"got strides {input.stride()}"
        )
    axes = zip(input.shape, input.stride(), strict=True)
    if any(stride == 0 and size > 1 for size, stride in axes):
        raise ValueError(
            "cross_entropy needs inplace=False for expanded input, whose elements share memory, "
            f"got strides {input.stride()}"
        )
    return _ops.donate(input)


def loss_dtype(input: Tensor) -> torch.dtype:
    """The dtype of a loss: that of ``input``, float32 under autocast."""
    return compute_dtype(input.dtype) if autocast_widens(input) else input.dtype
