"""Plots and an HTML page about the predictions and the calibration of any classifier.

Needs matplotlib: ``pip install matplotlib``, or this package with its extra ``plots``.
"""

from torch_softmax.report.writing import write_report

__all__ = ["write_report"]
