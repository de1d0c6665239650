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


def cross_entropy_by(target_of, library):
    return lambda x: library.cross_entropy(x, target_of(x), reduction="none")


SOFTMAX = (partial(torch_softmax.softmax, dim=1), partial(F.softmax, dim=1))
LOG_SOFTMAX = (partial(torch_softmax.log_softmax, dim=1), partial(F.log_softmax, dim=1))
CROSS_ENTROPY, SOFT_CROSS_ENTROPY = (
    tuple(cross_entropy_by(target_of, library) for library in (torch_softmax, F))
    for target_of in (some_classes, some_probabilities)
)
each_softmax = pytest.mark.parametrize(
    ("ours", "theirs"),
    [pytest.param(*SOFTMAX, id="softmax"), pytest.param(*LOG_SOFTMAX, id="log_softmax")],
)
each_operator = pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(*SOFTMAX, id="softmax"),
        pytest.param(*LOG_SOFTMAX, id="log_softmax"),
        pytest.param(*CROSS_ENTROPY, id="cross_entropy"),
        pytest.param(*SOFT_CROSS_ENTROPY, id="cross_entropy of probabilities"),
    ],
)
assert_cross_entropy_agrees = partial(assert_agrees, torch_softmax.cross_entropy, F.cross_entropy)
