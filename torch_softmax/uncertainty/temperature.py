"""Temperature scaling: calibrate the confidence of a model with one parameter.

The confidence of neural networks mostly exceeds their accuracy. Dividing all logits by one
temperature corrects this without changing the likeliest class (Guo et al., "On Calibration of
Modern Neural Networks", ICML 2017).
"""

import math
from typing import Self

import torch
from torch import Tensor, nn

from torch_softmax.functional import cross_entropy_with_stats
from torch_softmax.functional.checks import (
    ArgumentValueError,
    check_classified_rows,
    check_floating,
    check_tensor,
)


class TemperatureScaling(nn.Module):
    """Divides logits by a temperature, which :meth:`fit` determines from rows held out of training.

    A temperature above 1 lowers confidences, one below 1 raises them; the likeliest class stays the
    same. ``temperature`` is a buffer, so ``.to(device)`` moves it and ``state_dict`` contains it.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> calibrated = TemperatureScaling().fit(logits, torch.tensor([0, 0, 0, 1]))
        >>> calibrated(logits[0]).softmax(0)  # right in 3 of 4 rows
        tensor([0.7500, 0.2500])
    """

    # bounds of the search: for separable classes every lower temperature fits better, for
    # predictions worse than random every higher one
    MIN_TEMPERATURE = 0.01
    MAX_TEMPERATURE = 100.0
    # a mean in nats, far below the statistical error of any number of rows
    NEGLIGIBLE = 1e-9
    # of the logarithm of the temperature, about the precision of float32
    PRECISION = 1e-7

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    @torch.no_grad()
    def fit(self, logits: Tensor, target: Tensor) -> Self:
        """Find the temperature in [0.01, 100] that minimizes the mean cross-entropy.

        Cross-entropy is convex in 1 / temperature; at its minimum the mean cross-entropy equals the
        mean entropy. Bisection in float64 finds it. If the logits do not determine a temperature,
        as with one class or equal logits, the temperature is 1.

        Args:
            logits: Shape ``(rows, classes)``, of rows that the model was not trained on.
            target: True class of each row, any integer type.

        Returns:
            This module.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices disagree, there is no row, or a loss is not finite.
            IndexError: A target is not a class.
        """
        check_classified_rows("fit", "logits", logits, target)
        if len(logits) == 0:
            raise ArgumentValueError("fit needs logits of at least one row, got none")
        logits = logits.double()

        def overconfidence(log_temperature: float) -> float:
            stats = cross_entropy_with_stats(logits, target, logit_scale=math.exp(-log_temperature))
            # minus the derivative of the loss in log_temperature
            return (stats.loss - stats.entropy.mean()).item()

        low, high = math.log(self.MIN_TEMPERATURE), math.log(self.MAX_TEMPERATURE)
        at_one = overconfidence(0.0)
        if not math.isfinite(at_one):
            raise ArgumentValueError(
                "fit needs logits whose cross-entropy is finite, got infinite or NaN ones"
            )
        if abs(at_one) < self.NEGLIGIBLE:
            low = high = 0.0
        while high - low > self.PRECISION:
            middle = (low + high) / 2
            if overconfidence(middle) > 0:
                low = middle
            else:
                high = middle
        self.temperature.fill_(math.exp((low + high) / 2))
        return self

    def forward(self, logits: Tensor) -> Tensor:
        check_tensor("TemperatureScaling", "logits", logits)
        check_floating("TemperatureScaling", "logits", logits)
        return logits / self.temperature

    def extra_repr(self) -> str:
        """The temperature that ``repr`` shows."""
        return f"temperature={self.temperature.item():.4g}"
