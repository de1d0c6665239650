"""Peak memory of a step, beyond its inputs."""

import os
from collections.abc import Callable

import torch

# without this the profiler logs every start and stop to stderr
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_bytes_on_cpu(step: Callable[[], object]) -> int:
    """Peak of the memory allocated by PyTorch, including memory inside operators."""
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        result = step()
    # after profiling, because freeing the result is not part of the step
    del result
    kineto = profiler.kineto_results
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def peak_bytes_on_cuda(step: Callable[[], object]) -> int:
    """Peak of the memory allocated by PyTorch, in its blocks of 512 bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before
