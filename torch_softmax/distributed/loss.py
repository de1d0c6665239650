"""The loss of rows over all classes, as a function of what one gather tells of them."""

from typing import Any

from torch import Tensor

from torch_softmax import reference
from torch_softmax._options import LossOptions
from torch_softmax.distributed.shard_rows import GlobalRows


def loss_terms(
    rows: GlobalRows,
    ignored: Tensor | None,
    has_weight: bool,
    num_classes: Any,
    denominator: Tensor | None,
    options: LossOptions,
) -> reference.LossTerms:
    """The loss as a function of the rows; ``num_classes`` counts those of all ranks."""
    smoothing = options.label_smoothing
    row_weight = rows.row_weight if has_weight and ignored is not None else None
    if options.reduction == "mean" and denominator is None:
        denominator = reference.mean_denominator(rows.lse.unsqueeze(-1), row_weight, ignored)
    return reference.LossTerms(
        row_weight=row_weight,
        ignored=ignored,
        nll_factor=1 - smoothing,
        smooth_factor=smoothing / num_classes,
        z_loss=options.z_loss,
        denominator=denominator,
    )


def loss_of_rows(terms: reference.LossTerms, rows: GlobalRows, options: LossOptions) -> Tensor:
    """The loss of each row, or of all of them."""
    reduce = terms.row_losses if options.reduction == "none" else terms.reduced_loss
    return reduce(rows)  # type: ignore[arg-type]
