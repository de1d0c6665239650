"""Module forms of :mod:`torch_softmax.functional`: they hold settings and do no mathematics."""

from torch import Tensor, nn

from torch_softmax import functional


class Softmax(nn.Module):
    """Module form of :func:`torch_softmax.softmax`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim)

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"dim={self.dim}"


class LogSoftmax(nn.Module):
    """Module form of :func:`torch_softmax.log_softmax`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"dim={self.dim}"


class CrossEntropyLoss(nn.Module):
    """Module form of :func:`torch_softmax.cross_entropy`.

    ``weight`` is a buffer, so that ``.to(device)`` and ``state_dict`` carry it.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: functional.Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )
