"""A report as text of at most 100 columns."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from torch_softmax.benchmark.report import Measurement, Report

COLUMNS = 100
LEGEND = (
    "ms: median. GB/s: the bytes that the operator has to move at the least, over the time. copy: "
    "that as a share of a copy's speed. eager: eager's time over this one. ours: this time over "
    "ours. peak: the most memory at once beyond the inputs."
)

TEXT_WIDTHS = (15, 9, 9, 15)
NUMBER_WIDTHS = (8, 8, 7, 6, 7, 7, 9)
NO_WALL_WIDTHS = (8, 7, 6, 7, 7, 9)


def table(report: Report) -> str:
    """The run and its settings, then a table for each operator and number of threads."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    lines = [*_wrapped(machine), *_wrapped(report.command), *_wrapped(settings), *_wrapped(LEGEND)]
    for _, group in groupby(report.measurements, key=lambda m: m.case[:3]):
        lines += ["", *_section(list(group))]
    return "\n".join(lines)


def _section(measurements: Sequence[Measurement]) -> Iterator[str]:
    first = measurements[0]
    has_wall = any({"wall", "events"} <= m.times.keys() for m in measurements)
    yield _title(first)
    yield _line(
        "shape", "dtype", "mode", "provider", "ms", *["wall ms"] * has_wall,
        "GB/s", "copy", "eager", "ours", "peak MB",
    )  # fmt: skip
    for _, group in groupby(measurements, key=lambda m: m.case):
        case = list(group)
        seconds = {m.provider: m.seconds for m in case if m.times}
        for place, m in enumerate(case):
            about = ("x".join(map(str, m.shape)), m.dtype, m.mode) if place == 0 else ("",) * 3
            if not m.times:
                yield f"{_line(*about, m.provider)} failed: {m.failure}"[:COLUMNS]
                continue
            yield _line(
                *about,
                m.provider,
                _number(m.seconds * 1e3),
                *[_number(m.times["wall"].median * 1e3)] * has_wall,
                _bandwidth(m.bandwidth),
                f"{m.share_of_copy:.0%}",
                _ratio(seconds.get("eager"), m.seconds),
                _ratio(m.seconds, seconds.get("ours")),
                "" if m.peak_bytes is None else f"{m.peak_bytes / 1e6:.1f}",
            )
    yield from _remarks(measurements)


def _title(m: Measurement) -> str:
    about = [m.operator]
    if m.threads is not None:
        about.append(f"{m.threads} thread{'s' * (m.threads != 1)}")
    if m.ignored:
        about.append(f"{m.ignored:.0%} of the rows ignored")
    return ", ".join([*about, f"copy {_bandwidth(m.copy_bandwidth)} GB/s"])


def _remarks(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Remarks below a table: slowest first calls, synchronizations, providers without a graph."""
    first_calls: dict[str, float] = {}
    for m in measurements:
        if m.first_call is not None:
            first_calls[m.provider] = max(m.first_call, first_calls.get(m.provider, 0))
    if first_calls:
        listed = ", ".join(f"{name} {_number(seconds)}" for name, seconds in first_calls.items())
        yield from _wrapped(f"slowest first call, s: {listed}")
    syncs = {m.provider: m.syncs for m in measurements if m.syncs}
    if syncs:
        listed = ", ".join(f"{name} {count}" for name, count in syncs.items())
        yield from _wrapped(f"waits for the GPU per call: {listed}")
    clocks = {m.clock for m in measurements if m.times}
    if "graph" in clocks and len(clocks) > 1:
        others = dict.fromkeys(m.provider for m in measurements if m.times and m.clock != "graph")
        yield from _wrapped(f"in no CUDA graph, so timed with launches: {', '.join(others)}")


def _line(*fields: str) -> str:
    widths = NUMBER_WIDTHS if len(fields) == len(TEXT_WIDTHS + NUMBER_WIDTHS) else NO_WALL_WIDTHS
    texts, numbers = fields[: len(TEXT_WIDTHS)], fields[len(TEXT_WIDTHS) :]
    left = "".join(f"{text:<{width}}" for text, width in zip(texts, TEXT_WIDTHS, strict=False))
    right = "".join(f"{text:>{width}}" for text, width in zip(numbers, widths, strict=False))
    return (left + right).rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, break_long_words=False, break_on_hyphens=False)


def _bandwidth(bytes_per_second: float) -> str:
    gigabytes = bytes_per_second / 1e9
    return f"{gigabytes:.1f}" if gigabytes < 100 else f"{gigabytes:.0f}"


def _number(value: float) -> str:
    """Three significant digits, at most five decimals, no exponent."""
    magnitude = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(5, max(0, 2 - magnitude))}f}"


def _ratio(numerator: float | None, denominator: float | None) -> str:
    return f"{numerator / denominator:.2f}" if numerator and denominator else ""
