"""Calibration: of all rows with a confidence of 80 %, are 80 % predicted correctly?"""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_softmax._layout import compute_dtype
from torch_softmax.functional.checks import (
    check_classified_rows,
    check_count,
    check_probabilities,
)


class Reliability(NamedTuple):
    """Mean confidence and accuracy of the rows in each bin of confidence.

    Attributes:
        confidence: Mean confidence; NaN for an empty bin.
        accuracy: Fraction of rows whose likeliest class is the true one; NaN for an empty bin.
        n_rows: Number of rows in the bin, int64.
    """

    confidence: Tensor
    accuracy: Tensor
    n_rows: Tensor


def reliability(probabilities: Tensor, target: Tensor, n_bins: int = 15) -> Reliability:
    """Confidence and accuracy in bins of equal width, the points of a reliability diagram.

    Args:
        probabilities: Shape ``(rows, classes)``; each row sums to 1.
        target: True class of each row, any integer type.
        n_bins: Number of bins in [0, 1]. A bin includes its lower border, the last one both.

    Returns:
        :class:`Reliability`, each of shape ``(n_bins,)``.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices disagree, or a row is not a distribution.
        IndexError: A target is not a class.

    Example:
        >>> reliability(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]), n_bins=2)
        Reliability(confidence=tensor([   nan, 0.8000]), accuracy=tensor([   nan, 0.5000]), \
n_rows=tensor([0, 2]))
    """
    return _reliability("reliability", probabilities, target, n_bins)


def calibration_error(probabilities: Tensor, target: Tensor, n_bins: int = 15) -> Tensor:
    """Expected calibration error: mean of |confidence - accuracy| over the bins.

    The bins are those of :func:`reliability`, weighted by their numbers of rows. torchmetrics'
    ``MulticlassCalibrationError(norm="l1")`` is the same, except that it puts a confidence of
    exactly 1 into an additional bin; here it is in the last bin.

    Args:
        probabilities: Shape ``(rows, classes)``; each row sums to 1.
        target: True class of each row, any integer type.
        n_bins: Number of bins of equal width in [0, 1].

    Returns:
        A scalar in [0, 1]; NaN without rows.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices disagree, or a row is not a distribution.
        IndexError: A target is not a class.

    Example:
        >>> calibration_error(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
        tensor(0.4000)
    """
    bins = _reliability("calibration_error", probabilities, target, n_bins)
    gap = (bins.confidence - bins.accuracy).abs().nan_to_num()
    return (gap * bins.n_rows).sum() / bins.n_rows.sum()


def brier_score(probabilities: Tensor, target: Tensor) -> Tensor:
    """Mean over the rows of the squared distance between the probabilities and the true one-hot.

    0 is a certain and correct prediction, 2 a certain and wrong one (Brier, 1950). Differentiable.

    Args:
        probabilities: Shape ``(rows, classes)``; each row sums to 1.
        target: True class of each row, any integer type.

    Returns:
        A scalar in [0, 2]; NaN without rows.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices disagree, or a row is not a distribution.
        IndexError: A target is not a class.

    Example:
        >>> brier_score(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))
        tensor(1.1250)
    """
    check_classified_rows("brier_score", "probabilities", probabilities, target)
    check_probabilities("brier_score", probabilities)
    probabilities = probabilities.to(compute_dtype(probabilities.dtype))
    classes = torch.arange(probabilities.shape[1], device=target.device)
    error = probabilities - (target.unsqueeze(1) == classes).to(probabilities.dtype)
    return error.square().sum(1).mean()


@torch.no_grad()
def _reliability(function: str, probabilities: Tensor, target: Tensor, n_bins: int) -> Reliability:
    check_classified_rows(function, "probabilities", probabilities, target)
    check_probabilities(function, probabilities)
    check_count(function, "n_bins", n_bins)
    confidence, label = probabilities.to(compute_dtype(probabilities.dtype)).max(1)
    borders = torch.linspace(0, 1, n_bins + 1, dtype=confidence.dtype, device=confidence.device)
    bins = torch.bucketize(confidence, borders[1:-1], right=True)
    # a matrix product, because the order of scattered additions varies from run to run on a GPU
    in_bin = (bins == torch.arange(n_bins, device=bins.device).unsqueeze(1)).to(confidence.dtype)
    n_rows = in_bin.sum(1)
    return Reliability(
        confidence=in_bin @ confidence / n_rows,
        accuracy=in_bin @ (label == target).to(confidence.dtype) / n_rows,
        n_rows=n_rows.long(),
    )
