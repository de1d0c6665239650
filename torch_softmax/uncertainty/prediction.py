"""What logits say of each row: probabilities, the likeliest classes, and how sure they are."""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_softmax._layout import compute_dtype
from torch_softmax.functional import cross_entropy_with_stats, softmax
from torch_softmax.functional.checks import (
    ArgumentValueError,
    check_count,
    check_floating,
    check_tensor,
)

# a target that is no class: its rows have statistics and cost nothing
NO_TARGET = -100


class Prediction(NamedTuple):
    """What the logits of each row say; float32, float64 for float64.

    Attributes:
        probabilities: softmax(logits), which sum to 1, in the shape of the logits.
        label: Likeliest class, int64; of equal ones the first.
        confidence: Probability of ``label``.
        entropy: -sum(p * log(p)) in nats: 0 where the model is sure, log(classes) where every class
            is as likely.
        margin: Confidence minus the second largest probability, 0 where two classes tie.
        top_classes: The likeliest classes, likeliest first; one more axis, of length ``top_k``.
        top_probabilities: Their probabilities.
    """

    probabilities: Tensor
    label: Tensor
    confidence: Tensor
    entropy: Tensor
    margin: Tensor
    top_classes: Tensor
    top_probabilities: Tensor


def predict(logits: Tensor, top_k: int = 3) -> Prediction:
    """Probabilities of logits, the likeliest classes and how sure they are.

    A confidence says what the model believes, and a model can be wrong while it is sure:
    :class:`TemperatureScaling` brings confidences nearer to the truth. A row that holds NaN, +inf
    or nothing but -inf has no probabilities: its numbers are NaN, and its classes mean nothing.

    Args:
        logits: Shape ``(classes,)`` or ``(rows, classes)``; float16, bfloat16, float32 or float64.
        top_k: How many of the likeliest classes to name.

    Returns:
        :class:`Prediction`, whose probabilities, confidence, entropy and margin are differentiable.

    Raises:
        TypeError: ``logits`` is no floating-point tensor, or ``top_k`` no integer.
        ValueError: ``logits`` has another shape, or fewer than ``top_k`` classes.

    Example:
        >>> prediction = predict(torch.tensor([0.0, 2.0, 1.0]), top_k=2)
        >>> prediction.label, prediction.confidence
        (tensor(1), tensor(0.6652))
        >>> prediction.top_classes
        tensor([1, 2])
    """
    check_tensor("predict", "logits", logits)
    check_floating("predict", "logits", logits)
    if logits.dim() not in (1, 2):
        raise ArgumentValueError(
            f"predict needs logits of shape (classes,) or (rows, classes), "
            f"got {tuple(logits.shape)}"
        )
    n_classes = logits.shape[-1]
    check_count("predict", "top_k", top_k)
    if top_k > n_classes:
        raise ArgumentValueError(
            f"predict needs top_k of at most the {n_classes} classes, got {top_k}"
        )
    # bfloat16 would make every confidence above 0.998 a certainty
    probabilities = softmax(logits, -1, compute_dtype(logits.dtype))
    no_target = torch.full(logits.shape[:-1], NO_TARGET, device=logits.device)
    entropy = cross_entropy_with_stats(logits, no_target, reduction="none").entropy
    # of the logits, because unequal ones can round to equal probabilities; topk takes any of equals
    order = logits.detach().argsort(dim=-1, descending=True, stable=True)
    ordered = probabilities.gather(-1, order[..., : max(top_k, 2)])
    confidence = ordered[..., 0]
    return Prediction(
        probabilities=probabilities,
        label=order[..., 0],
        confidence=confidence,
        entropy=entropy,
        margin=confidence - ordered[..., 1] if n_classes > 1 else confidence,
        top_classes=order[..., :top_k],
        top_probabilities=ordered[..., :top_k],
    )
