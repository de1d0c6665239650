"""Measurement on a GPU: GPU time by graph replay and by events, and wall time per step."""

import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from torch_softmax.benchmark.cases import Case
from torch_softmax.benchmark.memory import peak_bytes_on_cuda
from torch_softmax.benchmark.workload import Workload

# bytes between two uses of the same input, in sizes of the last-level cache
CACHE_PASSES = 4
MAX_SETS = 128
COPY_ELEMENTS = 2**28
COPY_REPEATS = 20


class Cuda:
    """The current GPU."""

    device: ClassVar[str] = "cuda"
    threads: None = None
    clocks: Mapping[str, Callable[[Workload], Callable[[], float] | None]]

    def __init__(self) -> None:
        self.clocks = {
            "graph": self.graph_sampler,
            "events": self.event_sampler,
            "wall": self.wall_sampler,
        }

    def activate(self) -> None:
        """Do nothing: the current GPU is used."""

    def describe(self) -> dict[str, str]:
        """The GPU, its driver and the CUDA version."""
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            driver = answer.splitlines()[0].strip()
        except (OSError, subprocess.CalledProcessError, IndexError):
            driver = "unknown"
        return {
            "device": torch.cuda.get_device_name(),
            "driver": driver,
            "cuda": str(torch.version.cuda or torch.version.hip),
        }

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second by a copy far larger than the cache."""
        source = torch.randn(COPY_ELEMENTS, device="cuda")
        target = torch.empty_like(source)
        seconds = [_event_seconds(lambda: target.copy_(source)) for _ in range(COPY_REPEATS)]
        return 2 * source.nbytes / sorted(seconds)[COPY_REPEATS // 2]

    def n_sets(self, case: Case) -> int:
        """Number of calls in one sample, each with inputs that are no longer in the cache."""
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        return max(1, min(MAX_SETS, -(-CACHE_PASSES * cache // case.input_bytes)))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def peak_bytes(self, step: Callable[[], object]) -> int:
        return peak_bytes_on_cuda(step)

    def count_syncs(self, step: Callable[[], object]) -> int | None:
        """Number of times that the host waits for the device."""
        with warnings.catch_warnings(record=True) as caught:
            # set_sync_debug_mode itself warns that it is a prototype
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    def graph_sampler(self, work: Workload) -> Callable[[], float] | None:
        """GPU seconds per call without launch overhead; None if capture fails."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # backward runs on the stream of its forward, so forward must use the captured stream
        with torch.cuda.stream(stream):
            work.run(work.prepare())
            prepared = work.prepare()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph, stream=stream):
                work.run(prepared)
        except RuntimeError:
            torch.cuda.synchronize()
            return None

        def sample() -> float:
            if work.overwrites_logits:
                for start, inputs in prepared:
                    start.detach().copy_(inputs.x.detach())
            return _event_seconds(graph.replay) / len(prepared)

        return sample

    def event_sampler(self, work: Workload) -> Callable[[], float]:
        """GPU seconds per call, including the time that the GPU waits for launches."""

        def sample() -> float:
            prepared = work.prepare()
            return _event_seconds(lambda: work.run(prepared)) / len(prepared)

        return sample

    def wall_sampler(self, work: Workload) -> Callable[[], float]:
        """Wall seconds per call, until the GPU has finished all calls."""

        def sample() -> float:
            prepared = work.prepare()
            torch.cuda.synchronize()
            start = time.perf_counter()
            work.run(prepared)
            torch.cuda.synchronize()
            return (time.perf_counter() - start) / len(prepared)

        return sample


def _event_seconds(step: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000
