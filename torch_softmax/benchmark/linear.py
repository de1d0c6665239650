"""Linear cross-entropy: time beside that of its matrix products, memory, and error.

``python -m torch_softmax.benchmark.linear`` measures a step, forward and backward, of a mean over
rows.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from torch_softmax._atomic_file import write_atomically
from torch_softmax._command_line import OneLineParser, run_program, whole_number
from torch_softmax.benchmark.__main__ import file_to_write, share
from torch_softmax.benchmark.cases import DTYPES
from torch_softmax.benchmark.cpu import Cpu
from torch_softmax.benchmark.cuda import Cuda
from torch_softmax.benchmark.linear_measure import LinearCase, LinearResult, measure_linear
from torch_softmax.benchmark.linear_providers import OURS, linear_providers
from torch_softmax.benchmark.measure import Machine
from torch_softmax.benchmark.report import versions

COMMAND = "python -m torch_softmax.benchmark.linear"
LEGEND = (
    "ms: median. products: the time that the three matrix products of the rows that count take at\n"
    "the rate of one, over this time. eager: eager's time over this one. peak: the most memory at\n"
    "once beyond inputs and gradients. error: of the weight's gradient against float64, relative."
)


def table(results: Sequence[LinearResult]) -> str:
    """A line for each provider of each case."""
    eager = {r.case: r.times.median for r in results if r.provider == "eager" and r.times}
    titles = ("rows x features x classes", "dtype", "ignored", "provider")
    numbers = ("ms", "products", "eager", "peak MB", "error")
    lines = [_line(titles, numbers)]
    for r in results:
        shape = "x".join(map(str, r.case[:3]))
        about = (shape, r.case.dtype, f"{r.case.ignored:.0%}", r.provider)
        if r.times is None:
            lines.append(_line(about, (f"failed: {r.failure}",)))
            continue
        ratio = f"{eager[r.case] / r.times.median:.2f}" if r.case in eager else ""
        ms, peak = f"{r.times.median * 1e3:.1f}", f"{(r.peak_bytes or 0) / 1e6:.1f}"
        lines.append(
            _line(about, (ms, f"{r.share_of_products:.0%}", ratio, peak, f"{r.error:.1e}"))
        )
    return "\n".join(lines)


def _line(texts: Sequence[str], numbers: Sequence[str]) -> str:
    widths = (27, 10, 9, 15)
    left = "".join(f"{text:<{width}}" for text, width in zip(texts, widths, strict=True))
    return left + "".join(f"{number:>10}" for number in numbers)


def head_shape(text: str) -> tuple[int, ...]:
    """Rows, features and classes, as a flag is given them."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"needs sizes like 4096x512x32000, got {text!r}")
    return tuple(map(int, text.split("x")))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = OneLineParser(prog=COMMAND, description="Measure linear cross-entropy.")
    on_gpu = torch.cuda.is_available()
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    add("--shapes", type=head_shape, nargs="+", default=[(4096, 512, 32_000)])
    add("--dtype", choices=DTYPES, nargs="+", default=["bfloat16" if on_gpu else "float32"])
    add("--ignored", type=share, nargs="+", default=[0.0, 0.5])
    add("--threads", type=whole_number(1, 1024), default=torch.get_num_threads(), help="of a CPU")
    add("--repeats", type=whole_number(2, 10**6), default=6)
    add("--seed", type=whole_number(0, 2**63 - 1), default=0)
    add("--json", type=file_to_write, help="write what was measured")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[LinearResult]:
    """Measure and show."""
    options = parse(argv)
    machine: Machine = Cpu(options.threads) if options.device == "cpu" else Cuda()
    machine.activate()
    about = machine.describe() | versions()
    print(", ".join(f"{name} {value}" for name, value in about.items()), LEGEND, sep="\n")
    results: list[LinearResult] = []
    for shape in options.shapes:
        for dtype in options.dtype:
            for ignored in options.ignored:
                n_rows, n_features, n_classes = shape
                case = LinearCase(n_rows, n_features, n_classes, dtype, ignored)
                providers = linear_providers(options.device)
                results += measure_linear(case, machine, providers, options.repeats, options.seed)
    print(table(results))
    if options.json:
        told = {"machine": about, "results": [asdict(result) for result in results]}
        write_atomically(options.json, f"{json.dumps(told, indent=1)}\n".encode())
    return results


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code: 1 where ours failed."""
    return run_program(
        COMMAND, lambda: int(any(r.failure and r.provider == OURS.name for r in main(argv)))
    )


if __name__ == "__main__":
    sys.exit(run())
