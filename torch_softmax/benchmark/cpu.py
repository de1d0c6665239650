"""Measurement on a CPU: wall time with a number of threads."""

import platform
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import torch

from torch_softmax.benchmark.cases import Case
from torch_softmax.benchmark.memory import peak_bytes_on_cpu
from torch_softmax.benchmark.workload import Workload

# several small calls are timed together, because reading the clock costs time too
ELEMENTS_PER_SAMPLE = 2**20
MAX_SETS = 64
# 256 MiB, larger than the caches
COPY_ELEMENTS = 2**26
COPY_REPEATS = 10


class Cpu:
    """This machine's processor, with ``torch.set_num_threads(threads)``."""

    device: ClassVar[str] = "cpu"
    clocks: Mapping[str, Callable[[Workload], Callable[[], float] | None]]

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.clocks = {"wall": self.wall_sampler}

    def activate(self) -> None:
        """Set PyTorch's number of threads."""
        torch.set_num_threads(self.threads)

    def describe(self) -> dict[str, str]:
        """The processor, and whether the compiled loss is installed."""
        library = import_module("torch_softmax._cpu.library")
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return {
            "device": names[0] if names else platform.processor() or platform.machine(),
            # the environment variable ATEN_CPU_CAPABILITY can lower it
            "instruction set of PyTorch": torch.backends.cpu.get_cpu_capability(),
            "compiled loss": "yes" if library.is_available() else "no",
        }

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second by a copy into allocated memory."""
        source = torch.randn(2**16).repeat(COPY_ELEMENTS // 2**16)
        target = source.clone()
        seconds = []
        for _ in range(COPY_REPEATS):
            start = time.perf_counter()
            target.copy_(source)
            seconds.append(time.perf_counter() - start)
        return 2 * source.nbytes / sorted(seconds)[COPY_REPEATS // 2]

    def n_sets(self, case: Case) -> int:
        """Number of calls in one sample, each with inputs of its own."""
        return max(1, min(MAX_SETS, ELEMENTS_PER_SAMPLE // case.elements))

    def synchronize(self) -> None:
        """Do nothing: CPU calls are synchronous."""

    def peak_bytes(self, step: Callable[[], object]) -> int:
        return peak_bytes_on_cpu(step)

    def count_syncs(self, step: Callable[[], object]) -> int | None:
        return None

    def wall_sampler(self, work: Workload) -> Callable[[], float]:
        """Seconds per call."""

        def sample() -> float:
            prepared = work.prepare()
            start = time.perf_counter()
            work.run(prepared)
            return (time.perf_counter() - start) / len(prepared)

        return sample
