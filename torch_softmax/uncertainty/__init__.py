"""From logits to a decision: the likeliest class, how sure the model is, and how rightly so."""

from torch_softmax.uncertainty.calibration import (
    Reliability,
    brier_score,
    calibration_error,
    reliability,
)
from torch_softmax.uncertainty.outliers import nearest_neighbor_distance
from torch_softmax.uncertainty.prediction import Prediction, predict
from torch_softmax.uncertainty.temperature import TemperatureScaling

__all__ = [
    "Prediction",
    "Reliability",
    "TemperatureScaling",
    "brier_score",
    "calibration_error",
    "nearest_neighbor_distance",
    "predict",
    "reliability",
]
