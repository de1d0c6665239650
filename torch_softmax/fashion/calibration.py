"""What held-out images say about a classifier: how sure it may be, and which images are usual."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_softmax import uncertainty
from torch_softmax.fashion.data import Split
from torch_softmax.fashion.evaluation import BATCH_SIZE, compute_mirrored_logits, require_finite

# of the held-out images, the fraction whose distance stays below the limit
USUAL_FRACTION = 0.985


class Calibration(NamedTuple):
    """What the held-out images say about a classifier."""

    temperature: float
    features: Tensor  # of the held-out images
    limit: float  # of the distance from these features

    def is_unusual(self, model: Any, images: Tensor) -> Tensor:
        """Whether each image is unlike the training data.

        Probabilities do not tell: they sum to 1 for an image of anything.
        """
        features = compute_features(model, images)
        known = self.features.to(features.device, features.dtype)
        distance = uncertainty.nearest_neighbor_distance(features, known)
        return (distance > self.limit) | (images.amax(dim=(1, 2, 3)) == 0)


def calibrate(model: Any, held_out: Split) -> Calibration:
    """Calibrate a classifier on images that it was not trained on."""
    images, labels = held_out
    logits = compute_mirrored_logits(model, images)
    require_finite(logits)
    # bisection reads each number back, and some devices lack the float64 that it needs
    scaling = uncertainty.TemperatureScaling().fit(logits.cpu(), labels.cpu())
    features = compute_features(model, images)
    # the nearest neighbor of each of these images is the image itself
    distance = uncertainty.nearest_neighbor_distance(features, features, k=2)
    limit = distance.quantile(USUAL_FRACTION).item()
    # half precision keeps the checkpoint small
    return Calibration(scaling.temperature.item(), features.half().cpu(), limit)


@torch.no_grad()
def compute_features(model: Any, images: Tensor) -> Tensor:
    """The features of all images, in evaluation mode."""
    model.eval()
    return torch.cat([model.features(batch) for batch in images.split(BATCH_SIZE)])
