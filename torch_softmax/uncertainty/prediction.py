"""Predictions for rows of logits: probabilities, the likeliest classes and their confidence."""

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

# equals the default ignore_index, so rows have statistics and loss 0
NO_TARGET = -100


class Prediction(NamedTuple):
    """The prediction for each row of logits; float32, float64 for float64.

    Attributes:
        probabilities: softmax(logits), which sum to 1, in the shape of the logits.
        label: Likeliest class, int64; the first of several with equal logits.
        confidence: Probability of ``label``.
        entropy: -sum(p * log(p)) in nats: 0 if one class is certain, log(classes) if all classes
            are equally likely.
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
    """Probabilities of logits, the likeliest classes and their confidence.

    A model can be wrong with a high confidence; :class:`TemperatureScaling` calibrates confidences.
    A row with NaN or +inf, or with -inf only, has no probabilities: its values are NaN and its
    classes are arbitrary.

    Args:
        logits: Shape ``(classes,)`` or ``(rows, classes)``; float16, bfloat16, float32 or float64.
        top_k: Number of likeliest classes to return.

    Returns:
        :class:`Prediction`, whose probabilities, confidence, entropy and margin are differentiable.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor, or ``top_k`` is not an integer.
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
    # widened, because bfloat16 would round every confidence above 0.998 to 1
    probabilities = softmax(logits, -1, compute_dtype(logits.dtype))
    no_target = torch.full(logits.shape[:-1], NO_TARGET, device=logits.device)
    entropy = cross_entropy_with_stats(logits, no_target, reduction="none").entropy
    # sort logits, not probabilities, which may be equal after rounding; topk has no stable order
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
