"""The command line.

Exit codes: 0 done, 1 an own operator failed, 2 usage, 3 no such device, 130 interrupted.
"""

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torch_softmax._command_line import OneLineParser, UserError, run_program, whole_number
from torch_softmax.benchmark.cases import DTYPES, MODES, OPERATORS, cases_of, shapes_of
from torch_softmax.benchmark.cpu import Cpu
from torch_softmax.benchmark.cuda import Cuda
from torch_softmax.benchmark.measure import Machine, measure
from torch_softmax.benchmark.plan import DEFAULT_FILE, plan_table
from torch_softmax.benchmark.plot import check_plot_file, plot
from torch_softmax.benchmark.providers import OWN, PEERS, providers_of
from torch_softmax.benchmark.report import Report, versions
from torch_softmax.benchmark.table import table

COMMAND = "python -m torch_softmax.benchmark"
DEFAULT_REPEATS = 24


class DeviceError(UserError):
    """The requested device does not exist."""

    exit_code = 3


def share(text: str) -> float:
    """A type for ``add_argument``: fractions from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"needs a number from 0 to below 1, got {text!r}")
    return value


def file_to_write(text: str) -> Path:
    """A type for ``add_argument``: a file in an existing folder, so a long run can save it."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"needs a file in a folder that exists, got {text!r}")
    return path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags; a flag that is not given is None."""
    parser = OneLineParser(prog=COMMAND, description="Measure softmax and cross-entropy.")
    several: dict[str, Any] = {"nargs": "+"}
    run = parser.add_argument_group("what to measure")
    add = run.add_argument
    add("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one, else cpu)")
    add("--operator", choices=OPERATORS, **several, help="(default: all)")
    add(
        "--mode", choices=MODES, **several, help="step: forward and backward (default: all of them)"
    )
    add("--dtype", choices=DTYPES, **several, help="(default: float32 on a CPU, bfloat16 on a GPU)")
    shapes = "all, small, imagenet, llm, segmentation, or sizes like 8x10 (default: all)"
    add("--shapes", **several, help=shapes)
    add(
        "--ignored",
        type=share,
        **several,
        help="fractions of the rows to ignore, such as 0 0.1 (default: 0)",
    )
    add("--peers", choices=PEERS, **several, help="(default: all installed)")
    add("--threads", type=whole_number(1, 1024), **several, help="of a CPU (default: 1 2)")
    repeats = f"at least so many, in whole rounds of orders (default: {DEFAULT_REPEATS})"
    add("--repeats", type=whole_number(2, 10**6), help=repeats)
    add("--seed", type=whole_number(0, 2**63 - 1), help="of the inputs (default: 0)")
    add("--json", type=file_to_write, help="write what was measured, case by case")
    parser.add_argument("--plot", type=file_to_write, help="write a picture: .png, .svg, .pdf, ...")
    parser.add_argument("--from-json", type=Path, help="measure nothing: what --json once wrote")
    of_plan = "measure nothing: what a head of many classes takes on 1 to 1,024 GPUs"
    parser.add_argument("--plan", action="store_true", help=of_plan)
    options = parser.parse_args(argv)
    given = [action.dest for action in run._group_actions if getattr(options, action.dest)]
    for flag in ("from_json", "plan"):
        if getattr(options, flag) and given:
            name = flag.replace("_", "-")
            parser.error(f"argument --{name}: measures nothing, got --{given[0]} beside it")
    if options.plan and options.plot:
        parser.error("argument --plan: is a table, got --plot beside it")
    return options


def command_of(options: argparse.Namespace) -> str:
    """The command that repeats the measurement."""
    words = [COMMAND]
    for name, value in vars(options).items():
        if value is not None and name not in ("json", "plot", "from_json", "plan"):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    # COMMAND is several words, so it is not quoted
    return " ".join([words[0], *map(shlex.quote, words[1:])])


def machines_of(options: argparse.Namespace) -> list[Machine]:
    """The GPU, or the CPU at each number of threads."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        return [Cpu(threads) for threads in options.threads or (1, 2)[:cores]]
    if not torch.cuda.is_available():
        raise DeviceError("argument --device: needs a CUDA or ROCm GPU that PyTorch can use")
    if options.threads:
        raise UserError("argument --threads: needs --device cpu, got cuda")
    return [Cuda()]


def measured(options: argparse.Namespace) -> Report:
    """Run the measurement that the flags select."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("needs TRITON_INTERPRET unset: it would measure Triton's interpreter")
    machines = machines_of(options)
    device = machines[0].device
    dtypes = options.dtype or ["float32" if device == "cpu" else "bfloat16"]
    shapes = shapes_of(options.shapes or ["all"], device)
    cases = cases_of(
        options.operator or OPERATORS, options.mode, shapes, dtypes, options.ignored or [0.0]
    )
    if not cases:
        raise UserError(
            f"argument --mode: needs one that {' or '.join(options.operator)} has, "
            f"got {' '.join(options.mode)}"
        )
    providers = providers_of(options.peers, device)
    if importlib.util.find_spec("tqdm") is None:
        raise UserError("needs the package tqdm: pip install 'torch-softmax[benchmark]'")
    from tqdm import tqdm

    seed, repeats = options.seed or 0, options.repeats or DEFAULT_REPEATS
    report = Report(
        machine=machines[0].describe() | versions(),
        command=command_of(options),
        settings={"seed": seed, "repeats at least": repeats},
    )
    threads_before = torch.get_num_threads()
    try:
        # disable=None hides the bar if the output is not a terminal
        with tqdm(total=len(machines) * len(cases), unit="case", disable=None) as progress:
            for machine in machines:
                machine.activate()
                copy_bandwidth = machine.copy_bandwidth()
                for case in cases:
                    report.measurements += measure(
                        case,
                        machine,
                        providers,
                        copy_bandwidth=copy_bandwidth,
                        repeats=repeats,
                        seed=seed,
                    )
                    # after every case, so an interrupted run keeps its results
                    if options.json:
                        report.save(options.json)
                    progress.update()
    finally:
        torch.set_num_threads(threads_before)
    return report


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, or load a report, and print and plot it.

    Raises:
        UserError: A flag, a file, a package or the device is wrong; it has the exit code.
    """
    options = parse(argv)
    if options.plot:
        check_plot_file(options.plot)
    if options.plan:
        report = Report.load(options.from_json or DEFAULT_FILE)
        print(plan_table(report))
        return report
    report = Report.load(options.from_json) if options.from_json else measured(options)
    print(table(report))
    if options.plot:
        plot(report, options.plot)
    return report


def run(argv: Sequence[str] | None = None) -> int:
    """Run ``main`` and return its exit code; a UserError becomes one line on stderr."""

    def measure_and_judge() -> int:
        ours = {provider.name for provider in OWN}
        return int(any(m.failure and m.provider in ours for m in main(argv).measurements))

    return run_program(COMMAND, measure_and_judge)


if __name__ == "__main__":
    sys.exit(run())
