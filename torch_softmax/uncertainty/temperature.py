"""Temperature scaling: one number that makes a model as sure as it is right.

Networks are mostly surer than they are right. Dividing all logits by one temperature mends that
without changing which class is the likeliest (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017).
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
    """Divides logits by a temperature, which :meth:`fit` finds on rows kept out of training.

    Above 1 it makes a model less sure, below 1 surer; the likeliest class stays. ``temperature`` is
    a buffer, so that ``state_dict`` and ``.to(device)`` carry it.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> calibrated = TemperatureScaling().fit(logits, torch.tensor([0, 0, 0, 1]))
        >>> calibrated(logits[0]).softmax(0)  # right in 3 of 4 rows
        tensor([0.7500, 0.2500])
    """

    # with separable classes every lower temperature fits better, with worse than random ones every
    # higher one: these bounds are where the search ends
    MIN_TEMPERATURE = 0.01
    MAX_TEMPERATURE = 100.0
    # a mean in nats, far below what any number of rows can tell
    NEGLIGIBLE = 1e-9
    PRECISION = 1e-7  # of the logarithm of the temperature, about that of a float32

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    @torch.no_grad()
    def fit(self, logits: Tensor, target: Tensor) -> Self:
        """Find the temperature in [0.01, 100] that makes the mean cross-entropy least.

        Cross-entropy is convex in 1 / temperature, and least where its mean equals the mean
        entropy: where the surprise is as large as the model says it will be. Bisection in float64
        finds that place from any start; where the logits tell nothing of it, such as with one class
        or equal logits, the temperature is 1.

        Args:
            logits: Shape ``(rows, classes)``, of rows that the model was not trained on.
            target: True class of each row, any integer type.

        Returns:
            This module.

        Raises:
            TypeError: An argument is of the wrong kind or dtype.
            ValueError: Shapes or devices disagree, there is no row, or a loss is not finite.
            IndexError: A target is not a class.
        """
        check_classified_rows("fit", "logits", logits, target)
        if len(logits) == 0:
            raise ArgumentValueError("fit needs logits of at least one row, got none")
        logits = logits.double()

        def overconfidence(log_temperature: float) -> float:
            stats = cross_entropy_with_stats(logits, target, logit_scale=math.exp(-log_temperature))
            # times -1 / temperature, the derivative of the loss
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
        """Temperature, as ``repr`` shows it."""
        return f"temperature={self.temperature.item():.4g}"
