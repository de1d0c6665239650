"""What a head of many classes takes on many GPUs: a model, from rates measured on one of them.

A rank reads its logits once for the loss and reads and writes them once for the gradient, at the
measured rates of ``cross_entropy``. It receives ``BYTES_PER_ROW`` per row from every other rank
that shares the classes; rings sum the gradients. Bandwidth and latency of the links are assumed.
"""

import math
from pathlib import Path
from typing import NamedTuple

from torch_softmax._command_line import UserError
from torch_softmax.benchmark.report import Report

DEFAULT_FILE = Path(__file__).parent / "results" / "h200-cross-entropy.json"
CLASSES, FEATURES, ROWS = 262_144, 4096, 8192
GPUS = (1, 2, 4, 8, 16, 64, 256, 1024)
BYTES_PER_LOGIT = 2  # bfloat16, as are weight and gradients
BYTES_PER_ROW = 16  # row_max, log_sum_exp, nll and target_weight in float32
GPUS_PER_NODE = 8
# bytes per second and seconds: NVLink within a node, a 400 Gb/s network beyond it
NODE_BANDWIDTH, NETWORK_BANDWIDTH, LATENCY = 450e9, 50e9, 10e-6


class Rates(NamedTuple):
    """Bytes per second of the loss alone, and of the loss with its gradient."""

    forward: float
    step: float


class Plan(NamedTuple):
    """Bytes and seconds of one rank, whose classes and rows are parts of all."""

    class_ranks: int
    row_ranks: int
    classes: int
    logits: int
    weight: int  # of the head, as much as its gradient
    gathered: int
    input_gradient: float
    weight_gradient: float
    loss_seconds: float
    link_seconds: float


def rates_of(report: Report) -> Rates:
    """The rates at the most logits that were measured."""
    ours = {
        (math.prod(m.shape), m.mode): m.bandwidth
        for m in report.measurements
        if m.operator == "cross_entropy" and m.provider == "ours" and not m.failure
    }
    sizes = [size for size, mode in ours if mode == "step" and (size, "forward") in ours]
    if not sizes:
        raise UserError(
            "argument --plan: needs a file with forward and step of cross_entropy, got neither"
        )
    return Rates(ours[max(sizes), "forward"], ours[max(sizes), "step"])


def plan(class_ranks: int, row_ranks: int, rates: Rates) -> Plan:
    """A rank of ``class_ranks`` that share the classes of ROWS rows, of which others have more."""
    classes = -(-CLASSES // class_ranks)
    logits = ROWS * classes * BYTES_PER_LOGIT
    weight = classes * FEATURES * BYTES_PER_LOGIT
    gathered = (class_ranks - 1) * ROWS * BYTES_PER_ROW
    input_gradient = _ring(class_ranks, ROWS * FEATURES * BYTES_PER_LOGIT)
    weight_gradient = _ring(row_ranks, weight)
    within = _bandwidth(class_ranks)
    seconds = (gathered + input_gradient) / within + weight_gradient / NETWORK_BANDWIDTH
    steps = 3 * math.log2(class_ranks) + 2 * math.log2(row_ranks)
    return Plan(
        class_ranks=class_ranks,
        row_ranks=row_ranks,
        classes=classes,
        logits=logits,
        weight=weight,
        gathered=gathered,
        input_gradient=input_gradient,
        weight_gradient=weight_gradient,
        loss_seconds=logits / rates.forward + 2 * logits / rates.step,
        link_seconds=seconds + steps * LATENCY,
    )


def _ring(ranks: int, size: int) -> float:
    """Bytes that a rank receives while a ring sums ``size`` bytes of each."""
    return 2 * (ranks - 1) / ranks * size


def _bandwidth(ranks: int) -> float:
    return NODE_BANDWIDTH if ranks <= GPUS_PER_NODE else NETWORK_BANDWIDTH


def plans(rates: Rates) -> list[Plan]:
    """Classes over all GPUs; from two nodes on also over one node, and rows over the nodes."""
    shared = [plan(gpus, 1, rates) for gpus in GPUS]
    both = [
        plan(GPUS_PER_NODE, gpus // GPUS_PER_NODE, rates) for gpus in GPUS if gpus > GPUS_PER_NODE
    ]
    return shared + both


def plan_table(report: Report) -> str:
    """The plans in Markdown, under the rates and assumptions that they come from."""
    rates = rates_of(report)
    lines = [
        f"A head of {CLASSES:,} classes and {FEATURES:,} features in bfloat16, {ROWS:,} rows for "
        "each group that shares the classes.",
        f"Measured on {report.machine['device']}: {rates.forward / 1e12:.2f} TB/s for the loss, "
        f"{rates.step / 1e12:.2f} TB/s with its gradient.",
        f"Assumed: {NODE_BANDWIDTH / 1e9:.0f} GB/s among {GPUS_PER_NODE} GPUs of a node, "
        f"{NETWORK_BANDWIDTH / 1e9:.0f} GB/s beyond, {LATENCY * 1e6:.0f} us a message. Matrix "
        "products are not counted.",
        "",
        "| GPUs | classes x rows | classes per GPU | logits | weight | gather | input gradient |"
        " weight gradient | loss | links |",
        "| --- " * 10 + "|",
    ]
    return "\n".join(lines + [_line(row) for row in plans(rates)])


def _line(row: Plan) -> str:
    sizes = (row.logits, row.weight, row.gathered, row.input_gradient, row.weight_gradient)
    cells = [
        f"{row.class_ranks * row.row_ranks:,}",
        f"{row.class_ranks} x {row.row_ranks}",
        f"{row.classes:,}",
        *(f"{size / 1e6:,.1f} MB" for size in sizes),
        *(f"{1e3 * seconds:.2f} ms" for seconds in (row.loss_seconds, row.link_seconds)),
    ]
    return f"| {' | '.join(cells)} |"
