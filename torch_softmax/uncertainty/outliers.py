"""Out-of-distribution scores: distances between the features of a row and those of known rows.

The probabilities of a softmax sum to 1 for any image, even for noise, so they do not identify
outliers. The distance of an image's features to those of known images does (Sun et al.,
"Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_softmax._layout import compute_dtype
from torch_softmax.functional.checks import (
    ArgumentValueError,
    check_count,
    check_floating,
    check_tensor,
)

# limits the memory for the distances between rows and known rows
BLOCK_ROWS = 1024


def nearest_neighbor_distance(features: Tensor, known: Tensor, k: int = 1) -> Tensor:
    """Distance of each row to its k-th nearest known row, both scaled to length 1.

    The distance is an out-of-distribution score: the larger it is, the less the row resembles the
    known ones. A percentile of the distances of held-out rows, such as the 99th, gives a threshold.

    Args:
        features: Features of the model, such as the input of its last layer, shape ``(rows, n)``;
            any floating-point dtype.
        known: Features of rows that are in distribution, shape ``(known rows, n)``.
        k: Number of the neighbor. Use 2 to compare rows with themselves, because each row is its
            own nearest neighbor.

    Returns:
        Shape ``(rows,)``, in [0, 2]; float32, float64 for float64. Differentiable. NaN for a row
        with NaN or infinities.

    Raises:
        TypeError: A tensor is not floating-point, or ``k`` is not an integer.
        ValueError: Shapes disagree, or there are fewer than ``k`` known rows.

    Example:
        >>> known = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> nearest_neighbor_distance(torch.tensor([[5.0, 0.0], [-1.0, 0.0]]), known)
        tensor([0.0000, 1.4142])
    """
    for argument, rows in (("features", features), ("known", known)):
        check_tensor("nearest_neighbor_distance", argument, rows)
        check_floating("nearest_neighbor_distance", argument, rows)
    check_count("nearest_neighbor_distance", "k", k)
    if features.dim() != 2 or known.dim() != 2 or features.shape[1] != known.shape[1]:
        raise ArgumentValueError(
            "nearest_neighbor_distance needs features and known of shapes (rows, n) and "
            f"(known rows, n), got {tuple(features.shape)} and {tuple(known.shape)}"
        )
    if len(known) < k:
        raise ArgumentValueError(
            f"nearest_neighbor_distance needs at least k = {k} known rows, got {len(known)}"
        )
    known = F.normalize(known.to(compute_dtype(known.dtype)), dim=1)
    features = F.normalize(features.to(compute_dtype(features.dtype)), dim=1)
    distances = [
        torch.cdist(block, known).topk(k, dim=1, largest=False).values[:, -1]
        for block in features.split(BLOCK_ROWS)
    ]
    return torch.cat(distances)
