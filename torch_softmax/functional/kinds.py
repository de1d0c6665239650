"""Properties of the input that decide which function serves it, and in which dtype."""

import torch
from torch import Tensor
from torch.masked import MaskedTensor


def is_strided(x: Tensor) -> bool:
    """Whether rows have strides; nested, jagged, masked, sparse and mkldnn tensors have none."""
    return x.layout is torch.strided and not x.is_nested and not isinstance(x, MaskedTensor)


def autocast_widens(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; the meta device has none."""
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)
