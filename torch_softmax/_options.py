"""The options of a cross-entropy, shared by all layers."""

from typing import Literal, NamedTuple

Reduction = Literal["mean", "sum", "none"]


class LossOptions(NamedTuple):
    """As ``functional.cross_entropy`` defines them."""

    ignore_index: int
    reduction: Reduction
    label_smoothing: float
    z_loss: float
    softcap: float | None
    logit_scale: float
