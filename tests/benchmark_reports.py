"""Reports of the benchmark with numbers that are easy to check, and small samples."""

from torch_softmax.benchmark import cpu
from torch_softmax.benchmark.report import Measurement, Report
from torch_softmax.benchmark.timing import Spread


def measurement(provider="ours", milliseconds=2.0, **changes):
    """A step on 1000 x 1000 float32, whose floor is 8 MB, beside a copy of 8 GB/s."""
    seconds = milliseconds / 1e3
    facts = {
        "operator": "cross_entropy",
        "mode": "step",
        "shape": (1000, 1000),
        "dtype": "float32",
        "ignored": 0.0,
        "threads": 2,
        "floor_bytes": 8_000_000,
        "copy_bandwidth": 8e9,
        "times": {"wall": Spread(seconds, 0.9 * seconds, 1.2 * seconds, 0.8 * seconds)},
        "first_call": 0.25,
        "peak_bytes": 4_000_000,
    }
    return Measurement(provider=provider, **facts | changes)


def report(*measurements):
    return Report({"device": "Some CPU", "torch": "2.15.0"}, "do it", {"seed": 0}, [*measurements])


def take_small_samples(monkeypatch):
    """Let the benchmark take few and small samples, in an environment that says nothing."""
    monkeypatch.setattr(cpu, "COPY_ELEMENTS", 2**16)
    monkeypatch.setattr(cpu, "MAX_SETS", 2)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
