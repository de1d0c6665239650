"""Properties of the input that select the implementation and the dtype of the result."""

import torch
from torch import Tensor
from torch.masked import MaskedTensor


def is_strided(x: Tensor) -> bool:
    """Whether ``x`` has strides, unlike nested, jagged, masked, sparse and mkldnn tensors."""
    return x.layout is torch.strided and not x.is_nested and not isinstance(x, MaskedTensor)


def autocast_widens(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; the meta device has none."""
    if not torch._C._is_any_autocast_enabled():
        return False
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)
