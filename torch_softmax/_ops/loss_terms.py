"""What the options of a cross-entropy make of the numbers of its rows."""

from typing import NamedTuple

from torch import Tensor

from torch_softmax._layout import compute_dtype
from torch_softmax._ops.registration import is_eager
from torch_softmax._options import LossOptions


class LossTerms(NamedTuple):
    """What a row's numbers count in its loss, and what counts at all.

    The loss of a row is ``nll_factor * row_weight * nll + smooth_factor * smooth + z_loss *
    lse**2``, without ``row_weight`` where that is None, and 0 for a row in the mask ``ignored``. A
    sum of losses is divided by ``denominator``.
    """

    row_weight: Tensor | None
    ignored: Tensor | None
    nll_factor: float
    smooth_factor: float
    z_loss: float
    denominator: Tensor | int | None

    def of_rows(self, nll: Tensor, smooth: Tensor, lse: Tensor) -> Tensor:
        """The loss of each row."""
        loss = nll if self.row_weight is None else self.row_weight * nll
        if self.smooth_factor > 0:
            loss = self.nll_factor * loss + self.smooth_factor * smooth
        if self.z_loss > 0:
            # ignored before it is squared: the derivative of a NaN's square is NaN, not 0
            lse = lse if self.ignored is None else lse.masked_fill(self.ignored, 0)
            loss = loss + self.z_loss * lse.square()
        return loss if self.ignored is None else loss.masked_fill(self.ignored, 0)

    def of_all(self, nll: Tensor, smooth: Tensor, lse: Tensor) -> Tensor:
        """The loss of all rows."""
        loss = self.of_rows(nll, smooth, lse).sum()
        return loss if self.denominator is None else loss / self.denominator

    def coefficients(self, logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Derivatives ``b``, ``s`` and ``z`` of the loss of all in each nll, smooth and lse**2."""
        each = 1 / max(1, self.denominator) if isinstance(self.denominator, int) else 1.0
        share = logits.new_full(logits.shape[:-1], each, dtype=compute_dtype(logits.dtype))
        if isinstance(self.denominator, Tensor):
            share = share / self.denominator
        if self.ignored is not None:
            # last, as the mean of no row divides by 0, and an ignored row has no gradient
            share = share.masked_fill_(self.ignored, 0)
        b = share if self.row_weight is None else share * self.row_weight
        return (
            b * self.nll_factor if self.smooth_factor > 0 else b,
            share * self.smooth_factor if self.smooth_factor > 0 else None,
            share * self.z_loss if self.z_loss > 0 else None,
        )


def loss_terms(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor | None, LossTerms]:
    """Target and class weights as the operators take them, and what the options mean."""
    n_classes, dtype = logits.shape[-1], compute_dtype(logits.dtype)
    smoothing = options.label_smoothing
    weight = None if weight is None else weight.to(dtype)
    row_weight = ignored = class_weight = None
    if target.is_floating_point():
        class_weight = weight
    else:
        # int64 before the comparison: ignore_index may not exist in a narrower type, and would wrap
        target = target.long()
        ignored = _ignored(target, options.ignore_index)
        target = target if ignored is None else target.masked_fill(ignored, 0)
        if weight is not None:
            # on a GPU a target that is no class comes this far, and must not be looked up
            row_weight = weight[target.clamp(0, n_classes - 1)]
    if smoothing > 0 and class_weight is None:
        class_weight = logits.new_ones(n_classes, dtype=dtype) if weight is None else weight
    is_mean = options.reduction == "mean"
    terms = LossTerms(
        row_weight=row_weight,
        ignored=ignored,
        nll_factor=1 - smoothing,
        smooth_factor=smoothing / n_classes if smoothing > 0 else 0.0,
        z_loss=options.z_loss,
        denominator=_denominator(target, row_weight, ignored) if is_mean else None,
    )
    return target, class_weight, terms


def _ignored(target: Tensor, ignore_index: int) -> Tensor | None:
    """Which rows are ignored; None for none, as far as looking costs no waiting for a device."""
    if target.device.type == "cpu" and target.numel() > 0 and is_eager():
        low, high = target.aminmax()
        if not low.item() <= ignore_index <= high.item():
            return None
    return target == ignore_index


def _denominator(target: Tensor, row_weight: Tensor | None, ignored: Tensor | None) -> Tensor | int:
    """What the mean divides by; it stays on the device: reading it would stop the stream."""
    if row_weight is not None:
        return (row_weight if ignored is None else row_weight.masked_fill(ignored, 0)).sum()
    if ignored is not None:
        return (~ignored).sum()
    return (target.shape[:-1] if target.is_floating_point() else target.shape).numel()
