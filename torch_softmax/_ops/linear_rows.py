"""The rows of a linear head's logits, which no tensor holds all at once."""

from torch import Tensor

from torch_softmax._ops.linear_chunks import LinearHead


def losses_per_row(target: Tensor) -> tuple[int, ...]:
    """() for one loss per row of ``x``, else (losses,); the class axis of a target is its last."""
    return target.shape[1:-1] if target.is_floating_point() else target.shape[1:]


def classes_last(logits: Tensor, target: Tensor) -> Tensor:
    """Logits (rows, classes * losses) with their classes as the last axis."""
    losses = losses_per_row(target)
    return logits.unflatten(1, (-1, *losses)).transpose(1, 2) if losses else logits


def placeholder_logits(head: LinearHead, target: Tensor) -> Tensor:
    """One element that is expanded to the shape of all logits, for what asks for that shape."""
    losses = losses_per_row(target)
    n_classes = len(head.weight) // losses[0] if losses else len(head.weight)
    shape = (len(head.x), *losses, n_classes)
    return head.x.new_zeros((), dtype=head.logits_dtype).expand(shape)


def ignored_rows(target: Tensor, ignore_index: int) -> Tensor | None:
    """Mask of the rows of ``x`` all of whose targets are ignored; None for probabilities."""
    if target.is_floating_point():
        return None
    # int64 before the comparison: ignore_index may not exist in a narrower type, and would wrap
    return rows_of(target.long() == ignore_index)


def rows_of(ignored: Tensor) -> Tensor:
    """The rows of ``x`` that a mask of losses covers."""
    return ignored.all(1) if ignored.dim() == 2 else ignored
