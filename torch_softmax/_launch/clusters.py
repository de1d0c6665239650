"""Whether kernels hold long rows in clusters of thread blocks.

The blocks of a cluster run at the same time on neighbouring multiprocessors and read each other's
shared memory, so together they hold a row of up to 262144 columns, which memory then delivers once.
"""

import functools

import torch
import triton
from triton.backends.compiler import GPUTarget

# the first compute capability with clusters, and the first Triton whose reductions of 2-D tiles
# reach across the blocks of a cluster. Before it, atomics of a cluster lack a barrier
MIN_CAPABILITY = 90
MIN_TRITON = (3, 9)

# True and False replace the choice by the device: for tests, and to measure one against the other
enabled: bool | None = None


def has_clusters(device: torch.device) -> bool:
    """Whether long rows of tensors on ``device`` are held by clusters."""
    return _device_has_clusters(device.index) if enabled is None else enabled


@functools.cache
def _device_has_clusters(device_index: int | None) -> bool:
    # the interpreter has no device
    if triton.knobs.runtime.interpret:
        return False
    if device_index is None:
        return target_has_clusters(triton.runtime.driver.active.get_current_target())
    with torch.accelerator.device_index(device_index):
        return target_has_clusters(triton.runtime.driver.active.get_current_target())


def target_has_clusters(target: GPUTarget) -> bool:
    """Whether this Triton compiles reductions across clusters for ``target``."""
    is_recent = triton_version() >= MIN_TRITON
    return is_recent and target.backend == "cuda" and target.arch >= MIN_CAPABILITY


def triton_version() -> tuple[int, ...]:
    """The first two numbers of Triton's version."""
    return tuple(int(number) for number in triton.__version__.split(".")[:2])
