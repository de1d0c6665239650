"""Functions of logits, with the options of the operators, to differentiate and to compile."""

from functools import partial

import torch
import torch.nn.functional as F

TARGET = torch.tensor([[3, -100], [0, 1], [2, 2]])
WEIGHT = torch.tensor([0.5, 1.0, 1.5, 0.7], dtype=torch.double)


def cross_entropy(library, x, weight=None, **options):
    weight = None if weight is None else weight.to(x)
    return library.cross_entropy(x, TARGET.to(x.device), weight, **options)


def soft_cross_entropy(library, x, weight=None, **options):
    """With target probabilities that are a function of the logits, so that they have a gradient."""
    weight = None if weight is None else weight.to(x)
    return library.cross_entropy(x, F.softmax(x.flip(1), 1), weight, **options)


def statistics(library, x, **options):
    stats = library.cross_entropy_with_stats(x, TARGET.to(x.device), **options)
    return stats.loss.sum() + (stats.lse * stats.entropy).sum() + stats.entropy.square().sum()


# each from logits of shape (3, 4, 2), with the operators of torch_softmax or of PyTorch
FUNCTIONS = {
    "softmax": lambda library, x: library.softmax(x, 1),
    "log_softmax": lambda library, x: library.log_softmax(x, 1),
    "cross_entropy": cross_entropy,
    "weighted": partial(cross_entropy, weight=WEIGHT, reduction="sum"),
    "smoothed": partial(cross_entropy, label_smoothing=0.2, reduction="none"),
    "weighted and smoothed": partial(cross_entropy, weight=WEIGHT, label_smoothing=0.2),
    "probabilities": partial(soft_cross_entropy, label_smoothing=0.2),
    "weighted probabilities": partial(soft_cross_entropy, weight=WEIGHT, reduction="none"),
}
# these are torch_softmax's alone, and have no counterpart in PyTorch
OWN_FUNCTIONS = {
    "capped": partial(
        cross_entropy, weight=WEIGHT, label_smoothing=0.2, z_loss=0.1, softcap=2.0, logit_scale=0.7
    ),
    "capped probabilities": partial(
        soft_cross_entropy, label_smoothing=0.2, z_loss=0.1, softcap=2.0, logit_scale=0.7
    ),
    "statistics": statistics,
    "capped statistics": partial(statistics, softcap=2.0, logit_scale=-1.5, reduction="none"),
}
