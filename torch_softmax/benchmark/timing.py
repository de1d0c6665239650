"""Timing samples in a balanced order, and their statistics."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, 20th and 80th percentile, and minimum of a sample of seconds."""

    median: float
    p20: float
    p80: float
    minimum: float


def spread(samples: Sequence[float]) -> Spread:
    """The Spread of at least two samples; percentiles are interpolated."""
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Spread(statistics.median(samples), p20, p80, min(samples))


def balanced_rounds(n: int) -> list[list[int]]:
    """Orders of n participants, balanced in positions and in which participant follows which.

    Williams, "Experimental designs balanced for the estimation of residual effects" (1949).
    """
    steps = [(place + 1) // 2 if place % 2 else -place // 2 for place in range(n)]
    rounds = [[(step + shift) % n for step in steps] for shift in range(n)]
    # an odd number needs the reversed orders too
    return rounds + [order[::-1] for order in rounds] if n % 2 and n > 1 else rounds


def interleaved(
    samplers: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """At least ``repeats`` samples of each, in whole sets of balanced rounds."""
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    rounds = balanced_rounds(len(names))
    was_enabled = gc.isenabled()
    gc.collect()
    # a garbage collection would add to the time of an arbitrary sample
    gc.disable()
    try:
        while rounds and len(samples[names[0]]) < repeats:
            for order in rounds:
                for participant in order:
                    name = names[participant]
                    samples[name].append(samplers[name]())
    finally:
        if was_enabled:
            gc.enable()
    return samples
