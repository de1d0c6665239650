"""Module forms of :mod:`torch_softmax.functional`, which hold its options.

They are subclasses of PyTorch's modules, so ``isinstance`` checks accept them, and their
constructors take the arguments of PyTorch's.
"""

from torch import Tensor, nn

from torch_softmax import functional


class Softmax(nn.Softmax):
    """Module form of :func:`torch_softmax.softmax`; calling it with ``dim=None`` raises."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim)  # type: ignore[arg-type]


class LogSoftmax(nn.LogSoftmax):
    """Module form of :func:`torch_softmax.log_softmax`; calling it with ``dim=None`` raises."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim)  # type: ignore[arg-type]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Module form of :func:`torch_softmax.cross_entropy`.

    ``weight`` is a buffer, so ``.to(device)`` moves it and ``state_dict`` contains it.
    ``size_average`` and ``reduce`` are PyTorch's deprecated forms of ``reduction``, with PyTorch's
    warning. ``denominator`` changes from batch to batch, so it is an argument of the call.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: functional.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.inplace = inplace

    def forward(
        self, input: Tensor, target: Tensor, *, denominator: float | Tensor | None = None
    ) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,  # type: ignore[arg-type]
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            denominator=denominator,
            inplace=self.inplace,
        )

    def extra_repr(self) -> str:
        """The options that ``repr`` shows."""
        return (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}, z_loss={self.z_loss}, "
            f"softcap={self.softcap}, logit_scale={self.logit_scale}, inplace={self.inplace}"
        )
