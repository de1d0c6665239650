"""A gradient that was formed before its factor was known."""

from torch import Tensor


def scale_inplace(x: Tensor, factor: Tensor) -> None:
    """x *= factor, and nothing where the factor is 1, as it is for most losses."""
    if factor.item() != 1:
        x.mul_(factor)
