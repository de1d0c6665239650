"""DTensors: which axes of an input are sharded, and other tensors brought to match."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from torch_softmax.functional.checks import ArgumentTypeError, ArgumentValueError


class Sharding(NamedTuple):
    """How a mesh shards a tensor.

    ``axes`` holds, for each axis of the mesh, the axis of the tensor that it shards, or None.
    """

    mesh: DeviceMesh
    axes: tuple[int | None, ...]

    def placements(self, axis_of: dict[int, int]) -> tuple[Placement, ...]:
        """Placements of another tensor, which has axis ``axis_of[i]`` for axis i of this one."""
        return tuple(
            Replicate() if axis is None or axis not in axis_of else Shard(axis_of[axis])
            for axis in self.axes
        )

    def groups_except(self, axis: int) -> list[ProcessGroup]:
        """The groups that shard any axis but one."""
        return [
            self.mesh.get_group(i)
            for i, sharded in enumerate(self.axes)
            if sharded not in (None, axis)
        ]

    def group_of(self, axis: int) -> ProcessGroup | None:
        """The group that shards an axis; None if the rank has all of it."""
        return self.mesh.get_group(self.axes.index(axis)) if axis in self.axes else None


def sharding_of(function: str, input: Any, class_axis: int) -> Sharding:
    """How ``input`` is sharded; raise if it holds partial sums or its classes are cut twice."""
    if not isinstance(input, DTensor):
        raise ArgumentTypeError(
            f"{function} needs input to be a DTensor beside other DTensors, "
            f"got {type(input).__name__}"
        )
    axes: list[int | None] = []
    for placement in input.placements:
        if type(placement) is not Shard and type(placement) is not Replicate:
            raise ArgumentValueError(
                f"{function} needs input with placements Shard and Replicate, "
                f"got {input.placements}: redistribute it first"
            )
        axes.append(placement.dim % input.dim() if isinstance(placement, Shard) else None)
    if axes.count(class_axis) > 1:
        raise ArgumentValueError(
            f"{function} needs axis {class_axis} of input sharded by one axis of the mesh, "
            f"got {input.placements}"
        )
    return Sharding(input.device_mesh, tuple(axes))


def local_tensor(x: DTensor, grad_placements: Sequence[Placement] | None = None) -> Tensor:
    """This rank's part of ``x``, differentiable."""
    local: Any = x.to_local(grad_placements=grad_placements)
    # the result of a collective that still runs
    return local.wait() if hasattr(local, "wait") else local


def matching(
    function: str, argument: str, x: Tensor, sharding: Sharding, axis_of: dict[int, int]
) -> Tensor:
    """This rank's part of a tensor that has axis ``axis_of[i]`` for axis i of the input.

    A plain tensor is the whole one, the same on every rank. No communication takes place: other
    placements than those of the input, and copies, raise. Ranks that hold different rows sum
    their gradients of a copy.
    """
    wanted = sharding.placements(axis_of)
    if not isinstance(x, DTensor):
        copies = [Replicate()] * sharding.mesh.ndim
        x = DTensor.from_local(x, sharding.mesh, copies, run_check=False)
    if x.device_mesh != sharding.mesh:
        raise ArgumentValueError(
            f"{function} needs {argument} on the mesh of input, {sharding.mesh}, "
            f"got {x.device_mesh}"
        )
    for found, needed in zip(x.placements, wanted, strict=True):
        if found != needed and not found.is_replicate():
            raise ArgumentValueError(
                f"{function} needs {argument} with placements {wanted} or Replicate beside this "
                f"input, got {x.placements}"
            )
    grad_placements = [
        Partial() if axis is not None and axis not in axis_of else placement
        for axis, placement in zip(sharding.axes, wanted, strict=True)
    ]
    return local_tensor(x.redistribute(placements=wanted), grad_placements)


def as_dtensor(
    x: Tensor, sharding: Sharding, placements: Sequence[Placement], shape: Sequence[int]
) -> Tensor:
    """The DTensor of which ``x`` is this rank's part."""
    stride = torch.empty(shape, device="meta").stride()
    result = DTensor.from_local(
        x, sharding.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )
    if any(placement.is_partial() for placement in placements):
        return result
    # a gradient may have other placements, and from_local redistributes it without a derivative
    return result.redistribute(placements=placements)
