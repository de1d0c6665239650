"""Predictions from logits: the likeliest class, its confidence, calibration and outliers."""

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
