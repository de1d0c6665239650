"""The options of a cross-entropy, shared by all layers."""

from typing import Literal, NamedTuple

Reduction = Literal["mean", "sum", "none"]


class LossOptions(NamedTuple):
    """As ``functional.cross_entropy`` defines them."""

    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0


DEFAULT_OPTIONS = LossOptions()
