"""Every measurement of the README, one after another.

``python -m torch_softmax.benchmark.suite --out FOLDER`` writes a JSON file for each part, and a
plot for some. A part that fails does not stop the others.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torch_softmax._command_line import OneLineParser, UserError, run_program
from torch_softmax.benchmark import __main__ as operators
from torch_softmax.benchmark import linear

COMMAND = "python -m torch_softmax.benchmark.suite"


@contextmanager
def _two_reads() -> Any:
    """Read rows longer than a tile twice, on GPUs whose clusters would hold them as well."""
    from torch_softmax._launch import clusters

    clusters.enabled = False
    try:
        yield
    finally:
        clusters.enabled = None


class Part(NamedTuple):
    """A benchmark command and its arguments."""

    run: Callable[[Sequence[str]], int]
    arguments: str
    setting: Callable[[], AbstractContextManager[Any]] = nullcontext
    has_plot: bool = False


_LONG = "8192x128256 1024x128256 4096x65536 1024x262144"
_CUDA = "--device cuda --dtype bfloat16 --repeats 12"
PARTS = {
    "cpu": {
        "cross-entropy": Part(
            operators.run,
            "--device cpu --operator cross_entropy --dtype float32 bfloat16 float16 --threads 2",
            has_plot=True,
        ),
        "linear": Part(linear.run, "--device cpu --threads 2 --repeats 2"),
    },
    "cuda": {
        "cross-entropy": Part(
            operators.run,
            f"{_CUDA} --operator cross_entropy --shapes 128x10 60000x10 1048576x10 8192x32000 "
            f"16x19x512x1024 {_LONG}",
            has_plot=True,
        ),
        "softmax": Part(
            operators.run,
            f"{_CUDA} --operator softmax log_softmax --peers eager --shapes 262144x1024 65536x4096 "
            "16384x16384 8192x32000 4096x65536 1024x262144",
            has_plot=True,
        ),
        "two-reads": Part(
            operators.run, f"{_CUDA} --peers eager --mode forward step --shapes {_LONG}", _two_reads
        ),
        "linear": Part(
            linear.run, "--device cuda --dtype bfloat16 --shapes 4096x4096x128256 --repeats 4"
        ),
    },
}


def run_part(name: str, part: Part, stem: Path) -> int:
    """Run a part, whose files begin with ``stem``, and return its exit code."""
    arguments = [*part.arguments.split(), "--json", f"{stem}-{name}.json"]
    if part.has_plot:
        arguments += ["--plot", f"{stem}-{name}.png"]
    print(f"{name}: {' '.join(arguments)}", flush=True)
    start = time.perf_counter()
    with part.setting():
        code = part.run(arguments)
    print(f"{name}: exit code {code} after {time.perf_counter() - start:.0f} s", flush=True)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts of a device; the exit code is the largest one."""
    parser = OneLineParser(prog=COMMAND, description="Run every measurement of the README.")
    parser.add_argument("--device", choices=tuple(PARTS), help="(default: cuda where there is one)")
    parser.add_argument("--out", type=Path, required=True, help="an existing folder for the files")
    options: argparse.Namespace = parser.parse_args(argv)
    if not options.out.is_dir():
        raise UserError(f"argument --out: needs a folder that exists, got {options.out}")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    parts = PARTS[device].items()
    return max([run_part(name, part, options.out / device) for name, part in parts])


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code; a wrong flag becomes one line on stderr."""
    return run_program(COMMAND, lambda: main(argv))


if __name__ == "__main__":
    sys.exit(run())
