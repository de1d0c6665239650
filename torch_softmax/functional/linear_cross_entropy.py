"""Cross-entropy of a linear layer's logits, which are never there all at once."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torch_softmax import _ops
from torch_softmax._options import Reduction
from torch_softmax.functional.checks import as_loss_options
from torch_softmax.functional.linear_call import as_linear_call


class LinearCrossEntropyStats(NamedTuple):
    """A loss and what else the same pass over the logits tells of each row.

    An ignored row, whose logits are not computed, has 0 everywhere and -1 as its prediction.

    Attributes:
        loss: As :func:`linear_cross_entropy` returns it.
        lse: log(sum(exp(logits))), in the shape of the rows; float32, float64 for float64.
            Differentiable, as are ``loss``, ``entropy`` and ``log_probability``.
        entropy: -sum(p * log(p)) of p = softmax(logits), from 0 to log(classes); as ``lse``.
        prediction: Index of the largest logit, int64, in the shape of the rows.
        log_probability: log(p) of the target's class; for target probabilities q the sum of
            q * log(p), times ``weight`` if that is given. As ``lse``.
    """

    loss: Tensor
    lse: Tensor
    entropy: Tensor
    prediction: Tensor
    log_probability: Tensor


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    denominator: float | Tensor | None = None,
    logits_dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)`` without the logits.

    Logits are computed for a chunk of rows at a time, in one buffer that their gradient takes over.
    The forward pass forms the gradients that are needed, each chunk's share of the weight's and
    bias's added in float32 and rounded once. With ``reduction="none"`` and for float16 the backward
    pass computes the logits again. Under torch.func, in forward mode, for second derivatives, and
    for gradients of target probabilities and class weights, all logits are there at once.

    Args:
        input: Features, shape ``(features,)`` or ``(..., features)``, of any number of batch axes.
        linear_weight: Shape ``(classes, features)``, or ``(classes, d1, ..., features)`` for
            ``d1 * ...`` losses of each row; the dtype of ``input``.
        target: Class of each loss, shape ``(..., d1, ...)``; or probabilities, shape
            ``(..., classes, d1, ...)``. As for :func:`cross_entropy` in all else.
        linear_bias: In the shape of ``linear_weight`` without its last axis.
        weight: As for :func:`cross_entropy`.
        ignore_index: As for :func:`cross_entropy`. Ignored rows cost no matrix products. Where they
            are is read on the host, which on a GPU waits for the device, unless ``chunk_size`` is
            given: then the GPU does not stop, and computes them too.
        reduction: As for :func:`cross_entropy`.
        label_smoothing: As for :func:`cross_entropy`.
        z_loss: As for :func:`cross_entropy`.
        softcap: As for :func:`cross_entropy`.
        logit_scale: As for :func:`cross_entropy`.
        denominator: As for :func:`cross_entropy`.
        logits_dtype: torch.float32 keeps the logits of half-precision operands in float32, and the
            loss with them; None leaves them in the dtype of the operands.
        chunk_size: Rows of logits at a time; None takes what 1 GiB holds, on a CPU 32 MiB.

    Returns:
        A scalar, or with ``reduction="none"`` the shape of the losses; in the dtype of the logits,
        float32 under autocast. The mean of no counted row is NaN.

    Raises:
        TypeError: An argument is of the wrong kind or dtype.
        ValueError: Shapes or devices disagree, or an option has no meaning.
        IndexError: A target on the CPU is neither a class nor ``ignore_index``.

    Example:
        >>> linear_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    if has_torch_function_variadic(input, linear_weight, target, linear_bias, weight, denominator):
        loss: Tensor = handle_torch_function(
            linear_cross_entropy,
            (input, linear_weight, target, linear_bias, weight, denominator),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            logit_scale=logit_scale,
            denominator=denominator,
            logits_dtype=logits_dtype,
            chunk_size=chunk_size,
        )
        return loss
    name = "linear_cross_entropy"
    options = as_loss_options(
        name, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    call = as_linear_call(
        name,
        (input, linear_weight, target, linear_bias, weight, denominator),
        options,
        logits_dtype,
        chunk_size,
    )
    loss = _ops.linear_cross_entropy_loss(call.head, *call.arguments)
    return loss.reshape(call.shape) if reduction == "none" else loss


def linear_cross_entropy_with_stats(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    denominator: float | Tensor | None = None,
    logits_dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
) -> LinearCrossEntropyStats:
    """:func:`linear_cross_entropy`, with lse, entropy, prediction and log-probability of each row.

    Reinforcement learning and distillation need them, with their derivatives; the backward pass
    computes the logits of each chunk again.

    Args:
        input: As for :func:`linear_cross_entropy`, and so are the others.
        linear_weight: The weight of the layer.
        target: Class indices or probabilities.
        linear_bias: The bias of the layer.
        weight: Touches ``loss`` alone, and for target probabilities ``log_probability``.
        ignore_index: Target value whose rows have no statistics.
        reduction: Touches ``loss`` alone.
        label_smoothing: Touches ``loss`` alone.
        z_loss: Touches ``loss`` alone.
        softcap: The statistics are those of the capped logits.
        logit_scale: The statistics are those of the scaled logits.
        denominator: Touches ``loss`` alone.
        logits_dtype: The dtype of the logits.
        chunk_size: Rows of logits at a time.

    Returns:
        :class:`LinearCrossEntropyStats`.

    Raises:
        TypeError: As for :func:`linear_cross_entropy`.
        ValueError: As for :func:`linear_cross_entropy`.
        IndexError: As for :func:`linear_cross_entropy`.

    Example:
        >>> x, linear_weight, target = torch.zeros(1, 3), torch.zeros(4, 3), torch.tensor([3])
        >>> linear_cross_entropy_with_stats(x, linear_weight, target).log_probability
        tensor([-1.3863])
    """
    if has_torch_function_variadic(input, linear_weight, target, linear_bias, weight, denominator):
        stats: LinearCrossEntropyStats = handle_torch_function(
            linear_cross_entropy_with_stats,
            (input, linear_weight, target, linear_bias, weight, denominator),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            logit_scale=logit_scale,
            denominator=denominator,
            logits_dtype=logits_dtype,
            chunk_size=chunk_size,
        )
        return stats
    name = "linear_cross_entropy_with_stats"
    options = as_loss_options(
        name, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    call = as_linear_call(
        name,
        (input, linear_weight, target, linear_bias, weight, denominator),
        options,
        logits_dtype,
        chunk_size,
    )
    loss, rows = _ops.linear_cross_entropy_with_rows(call.head, *call.arguments, True)
    statistics = (rows.lse, rows.entropy, rows.prediction, -rows.nll)
    return LinearCrossEntropyStats(
        loss.reshape(call.shape) if reduction == "none" else loss,
        *(y.reshape(call.shape) for y in statistics),
    )
