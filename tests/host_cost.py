"""What training steps launch and cost the host, as JSON: Triton's real launcher over a stub.

``python host_cost.py LIBRARY`` needs ``libcuda_stub.c`` compiled to ``libcuda.so.1`` and preloaded,
its folder in TRITON_LIBCUDA_PATH, and no TRITON_INTERPRET. CPU tensors stand for those of a GPU:
nothing is computed.
"""

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils
from triton.runtime.jit import JITFunction

import torch_softmax
from torch_softmax._ops import cpu_path

driver = ctypes.CDLL(sys.argv[1])


class Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("n_threads", ctypes.c_uint),
        ("n_attributes", ctypes.c_uint),
        ("cluster_blocks", ctypes.c_uint),
    ]


class StubDriver(CudaDriver):
    """The driver of a GPU of compute capability 9.0, which no PyTorch knows of."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: (9, 0)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Empty(torch.autograd.Function):
    """What a step costs that computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def launched(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """What ``run`` launches, and whether it went through Triton's just-in-time path."""
    driver.stub_launch.restype = ctypes.POINTER(Launch)
    driver.stub_clear()
    just_in_time, run_kernel = [], JITFunction.run

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        just_in_time.append(self.fn.__name__)
        return run_kernel(self, *args, **kwargs)

    JITFunction.run = recording
    run()
    JITFunction.run = run_kernel
    found = [driver.stub_launch(i).contents for i in range(driver.stub_count())]
    return [
        {
            "kernel": launch.kernel.decode(),
            "grid": list(launch.grid),
            "warps": launch.n_threads // 32,
            "attributes": launch.n_attributes,
            "cluster_blocks": launch.cluster_blocks,
            "just_in_time": launch.kernel.decode() in just_in_time,
        }
        for launch in found
    ]


def launches_of_step(shape: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """The launches of the forward and the backward pass."""
    logits = torch.empty(shape, requires_grad=True)
    target = torch.zeros(shape[0], dtype=torch.int64)
    losses: list[Tensor] = []
    forward = launched(
        lambda: losses.append(torch_softmax.cross_entropy(logits, target, **options))
    )
    return {"forward": forward, "backward": launched(losses[0].backward)}


def microseconds(n_repeats: int = 500) -> dict[str, float]:
    """Medians of a step of 128 x 10, interleaved."""
    logits = torch.randn(128, 10, requires_grad=True)
    target = torch.randint(10, (128,))
    losses = {
        "torch_softmax": lambda: torch_softmax.cross_entropy(logits, target),
        "torch": lambda: F.cross_entropy(logits, target),
        "empty Function": lambda: Empty.apply(logits),
    }
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(n_repeats):
        for name, loss in losses.items():
            logits.grad = None
            start = time.perf_counter()
            loss().backward()
            times[name].append(time.perf_counter() - start)
    return {name: round(1e6 * statistics.median(values), 1) for name, values in times.items()}


def launches_with_hook() -> int:
    """How many launches of a step a profiler's hook sees."""
    seen: list[Any] = []
    before = triton.knobs.runtime.launch_enter_hook
    triton.knobs.runtime.launch_enter_hook = seen.append
    launches_of_step((128, 10))
    triton.knobs.runtime.launch_enter_hook = before
    return len(seen)


def main() -> None:
    triton.runtime.driver.set_active(StubDriver())
    cpu_path.take("interpreted")
    torch.set_num_threads(1)
    report = {
        "few rows": launches_of_step((128, 10)),
        "few rows again": launches_of_step((128, 10)),
        "sum": launches_of_step((4800, 1000), reduction="sum"),
        "many rows": launches_of_step((4800, 1000)),
        "other rows of the same specialization": launches_of_step((6400, 1000)),
        "long rows": launches_of_step((2, 131072)),
        "long rows again": launches_of_step((2, 131072)),
        "seen by a hook": launches_with_hook(),
        "microseconds": microseconds(),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
