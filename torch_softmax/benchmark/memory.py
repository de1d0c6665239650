"""The most memory that a step holds at once, beyond what it was given."""

import os
from collections.abc import Callable

import torch

# the profiler tells every start and stop on stderr
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_bytes_on_cpu(step: Callable[[], object]) -> int:
    """The running maximum of what PyTorch's allocator has given out, inside operators too."""
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        result = step()
    # only now: freeing the result is no part of the step
    del result
    kineto = profiler.kineto_results
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_bytes_on_cuda(step: Callable[[], object]) -> int:
    """What PyTorch's allocator counts, in its blocks of 512 bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before
