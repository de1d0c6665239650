"""The operators of torch_softmax beside PyTorch's, as functions of the logits alone."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from numerics import assert_agrees


def some_classes(logits):
    """A class for each row: the last class for the first row."""
    rows = torch.arange(logits[:, 0].numel(), device=logits.device).view_as(logits[:, 0])
    return (logits.shape[1] - 1 - 7 * rows) % logits.shape[1]


def some_probabilities(logits):
    """Half for the class of :func:`some_classes`, the rest evenly for all classes."""
    one_hot = F.one_hot(some_classes(logits), logits.shape[1]).movedim(-1, 1)
    return (0.5 * one_hot + 0.5 / logits.shape[1]).to(logits.dtype)


def cross_entropies(target_of, reduction):
    """Cross-entropy against the targets that belong to the logits, by both libraries."""
    return tuple(
        lambda x, library=library: library.cross_entropy(x, target_of(x), reduction=reduction)
        for library in (torch_softmax, F)
    )


SOFTMAX = (partial(torch_softmax.softmax, dim=1), partial(F.softmax, dim=1))
LOG_SOFTMAX = (partial(torch_softmax.log_softmax, dim=1), partial(F.log_softmax, dim=1))
each_softmax = pytest.mark.parametrize(
    ("ours", "theirs"),
    [pytest.param(*SOFTMAX, id="softmax"), pytest.param(*LOG_SOFTMAX, id="log_softmax")],
)
BY_ROW = [
    *each_softmax.args[1],
    pytest.param(*cross_entropies(some_classes, "none"), id="cross_entropy"),
    pytest.param(*cross_entropies(some_probabilities, "none"), id="soft cross_entropy"),
]
# those whose result has a row, or an element, for each of the logits
each_operator_by_row = pytest.mark.parametrize(("ours", "theirs"), BY_ROW)
# a mean takes other kernels than losses per row
each_operator = pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *BY_ROW,
        pytest.param(*cross_entropies(some_classes, "mean"), id="mean cross_entropy"),
        pytest.param(*cross_entropies(some_probabilities, "mean"), id="mean soft cross_entropy"),
    ],
)
assert_cross_entropy_agrees = partial(assert_agrees, torch_softmax.cross_entropy, F.cross_entropy)


def softcapped(x, softcap=None, logit_scale=1.0):
    """Logits as their softmax takes them."""
    x = x * logit_scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def cross_entropy_definition(
    logits,
    target,
    weight=None,
    *,
    z_loss=0.0,
    softcap=None,
    logit_scale=1.0,
    reduction="mean",
    **options,
):
    """Cross-entropy with all its options, in PyTorch's operators."""
    x = softcapped(logits, softcap, logit_scale)
    loss = F.cross_entropy(x, target, weight, reduction="none", **options)
    soft = target.is_floating_point()
    counted = torch.ones_like(loss) if soft else (target != -100).to(loss.dtype)
    loss = loss + z_loss * x.logsumexp(1).square() * counted
    if weight is not None and not soft:
        counted = counted * weight[target.clamp(min=0)]
    total = loss.sum()
    return {"none": loss, "sum": total, "mean": total / counted.sum()}[reduction]
