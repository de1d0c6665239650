"""Scaling of a gradient that was computed before its factor was known."""

from torch import Tensor


def scale_inplace(x: Tensor, factor: Tensor) -> None:
    """x *= factor, skipped if the factor is 1, as for most losses."""
    if factor.item() != 1:
        x.mul_(factor)
