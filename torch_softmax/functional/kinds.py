"""Properties of the input that select the implementation and the dtype of the result."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.masked import MaskedTensor
from torch.nn import Parameter


def is_strided(x: Tensor) -> bool:
    """Whether ``x`` has strides, unlike nested, jagged, masked, sparse and mkldnn tensors."""
    return x.layout is torch.strided and not x.is_nested and not isinstance(x, MaskedTensor)


def autocast_widens(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; the meta device has none."""
    if not torch._C._is_any_autocast_enabled():
        return False
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def has_dtensor(*values: Any) -> bool:
    """Whether one of the values is a DTensor, asked without importing their package."""
    for x in values:
        if isinstance(x, Tensor) and type(x) not in (Tensor, Parameter):
            dtensors = sys.modules.get("torch.distributed.tensor")
            return dtensors is not None and any(isinstance(y, dtensors.DTensor) for y in values)
    return False
