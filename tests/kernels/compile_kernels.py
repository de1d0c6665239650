"""Compile the kernels without a GPU, as the launchers would start them, and print JSON.

    python tests/kernels/compile_kernels.py sm_90 [--all]

The launchers run on CPU tensors, and every kernel that they would launch is compiled instead, by
the path that a launch takes through Triton: signature, alignment, constants and options are those
of a GPU. A script of its own, because a process that has TRITON_INTERPRET set compiles nothing.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch_softmax._kernels.tiles import Matrix, TileShape
from triton.backends.compiler import GPUTarget

from torch_softmax import _launch
from torch_softmax._launch import clusters

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# the class axis is axis 1
LAYOUTS = {
    "few_classes": (4096, 10),
    # rows of whole 16 bytes, which is more than Triton finds out: it asks for multiples of 16 alone
    "thousand_classes": (256, 1000),
    # rows of any alignment
    "odd_classes": (4, 50257),
    "odd_longest_block": (4, 15001),
    "one_row_a_program": (2, 4096),
    # the largest tile of a kernel with one live float32 per element
    "longest_block": (2, 16384),
    "longer_than_a_block": (2, 131072),
    "channels_first": (2, 19, 4096),
    "many_channels_first": (2, 4096, 64),
}


WEIGHT_SUM_KERNEL = "weight_sum_kernel"


class Case(NamedTuple):
    target: str
    operation: str
    layout: str
    dtype: str

    def __str__(self) -> str:
        return "-".join(self)


def class_indices(logits: Tensor) -> Tensor:
    return torch.zeros(logits.shape[:-1], dtype=torch.int64)


def softmax(x: Tensor) -> None:
    x = x.movedim(-1, 1)
    y = _launch.launch_softmax_forward(x, 1, x.dtype)
    _launch.launch_softmax_backward(x, y, 1, x.dtype)


def log_softmax(x: Tensor) -> None:
    x = x.movedim(-1, 1)
    y = _launch.launch_log_softmax_forward(x, 1, x.dtype)
    _launch.launch_log_softmax_backward(x, y, 1, x.dtype)


class Options(NamedTuple):
    """The options that a kernel is specialized for."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0
    with_weight: bool = False
    with_entropy: bool = False


PLAIN = Options()
SMOOTHED = Options(label_smoothing=0.1)
EVERYTHING = Options(0.1, 1e-4, 30.0, 0.5, with_entropy=True)
WEIGHTED = Options(0.1, with_weight=True)


def rows_forward_and_backward(logits: Tensor, target: Tensor, options: Options) -> None:
    """Forward and backward in two kernels, as for a loss of each row."""
    is_smoothed = options.label_smoothing > 0
    weight = torch.ones(logits.shape[-1]) if is_smoothed else None
    cap = (options.logit_scale, options.softcap)
    outputs = _launch.launch_cross_entropy_forward(
        logits, target, weight, *cap, options.with_entropy
    )
    s = outputs.nll if is_smoothed else None
    e = outputs.nll if options.with_entropy else None
    rows = (outputs.softmax_stats, outputs.nll, outputs.nll, s, e)
    _launch.launch_cross_entropy_backward(logits, target, weight, *rows, *cap)


def loss_and_gradient(
    logits: Tensor, target: Tensor, options: Options = PLAIN, with_gradient: bool = True
) -> None:
    """One pass, and the factor of the gradient."""
    weight = torch.ones(logits.shape[-1]) if options.with_weight else None
    _loss, dlogits = _launch.launch_cross_entropy_loss(
        logits,
        target,
        weight,
        None,
        logits.dtype,
        with_gradient,
        -100,
        "mean",
        options.label_smoothing,
        options.z_loss,
        options.softcap,
        options.logit_scale,
    )
    factor = torch.ones((), dtype=logits.dtype)
    _launch.launch_scale_inplace(dlogits, factor)


OPERATIONS = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "cross_entropy": lambda x: rows_forward_and_backward(x, class_indices(x), PLAIN),
    "smoothed_cross_entropy": lambda x: rows_forward_and_backward(x, class_indices(x), SMOOTHED),
    "cross_entropy_with_everything": lambda x: rows_forward_and_backward(
        x, class_indices(x), EVERYTHING
    ),
    "probability_cross_entropy": lambda x: rows_forward_and_backward(x, x.clone(), PLAIN),
    "probability_cross_entropy_with_everything": lambda x: rows_forward_and_backward(
        x, x.clone(), EVERYTHING
    ),
    "loss_alone": lambda x: loss_and_gradient(x, class_indices(x), with_gradient=False),
    "loss": lambda x: loss_and_gradient(x, class_indices(x)),
    "loss_with_everything": lambda x: loss_and_gradient(x, class_indices(x), EVERYTHING),
    "weighted_loss": lambda x: loss_and_gradient(x, class_indices(x), WEIGHTED),
    "probability_loss": lambda x: loss_and_gradient(x, x.clone()),
    "probability_loss_with_everything": lambda x: loss_and_gradient(x, x.clone(), EVERYTHING),
}

# rows that fit a tile and longer ones, one and several per program: every kernel
SCHEDULE_LAYOUTS = [
    "few_classes",
    "one_row_a_program",
    "longer_than_a_block",
    "many_channels_first",
]
PLAIN_OPERATIONS = [
    "softmax",
    "cross_entropy",
    "probability_cross_entropy",
    "loss",
    "probability_loss",
]
EVERY_OPTION = [operation for operation in OPERATIONS if operation.endswith("everything")]
CASES = [
    Case(*case)
    for targets, operations, layouts, dtypes in (
        (["sm_90"], OPERATIONS, LAYOUTS, ["bfloat16"]),
        (["sm_90"], PLAIN_OPERATIONS, [*SCHEDULE_LAYOUTS, "longest_block"], ["float32"]),
        (["sm_90"], EVERY_OPTION, ["one_row_a_program", "odd_classes"], ["float32"]),
        (["sm_90"], PLAIN_OPERATIONS, SCHEDULE_LAYOUTS, ["float16", "float64"]),
        # the dtype for which targets have different instructions
        (["sm_80", "sm_100", "gfx942"], PLAIN_OPERATIONS, SCHEDULE_LAYOUTS, ["bfloat16"]),
    )
    for case in itertools.product(targets, operations, layouts, dtypes)
]


def is_exhaustive(case: Case) -> bool:
    """Whether the case is compiled with ``--all`` alone, because another stands for it."""
    if (case.target, case.dtype) == ("sm_90", "bfloat16"):
        if case.operation in PLAIN_OPERATIONS:
            return case.layout in ("odd_longest_block", "longest_block")
        is_alone = case.operation in (*EVERY_OPTION, "log_softmax", "loss_alone")
        unaligned = ["odd_classes"] if is_alone else []
        return case.layout not in (*SCHEDULE_LAYOUTS, "thousand_classes", *unaligned)
    layouts, operations = SCHEDULE_LAYOUTS[1:3], ("softmax", "cross_entropy", "loss")
    return case.layout not in layouts or case.operation not in operations


# the weight_sum kernel reads no matrix
NO_TILE = TileShape(4096, 1, 1, False, False, 1)._asdict()


class OfflineDriver:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, device: str) -> int:
        return 0


# what to record of a compiled kernel
Measure = Callable[[Any], dict[str, Any]]


class CompilingKernel:
    """Stands in a launcher for a kernel: ``kernel[grid](...)`` compiles it and starts nothing."""

    def __init__(
        self, name: str, kernel: Any, records: list[dict[str, Any]], measure: Measure
    ) -> None:
        self.name, self.kernel, self.records, self.measure = name, kernel, records, measure

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile(*args: Any, **kwargs: Any) -> None:
            record = {"kernel": self.name, "error": None, "matrix_bytes": matrix_bytes(args)}
            record |= kwargs["TILE"]._asdict() if "TILE" in kwargs else NO_TILE
            assert record["num_ctas"] == kwargs["num_ctas"]
            record["num_warps"] = kwargs["num_warps"]
            try:
                compiled = self.kernel.warmup(*args, grid=grid, **kwargs)
                record |= measure(compiled.asm) | self.measure(compiled)
            # whatever it is, the other kernels are compiled and the tests name all that fail
            except Exception as error:
                record["error"] = f"{error}\n{error.__cause__ or ''}"
            self.records.append(record)

        return compile


def matrix_bytes(args: tuple[Any, ...]) -> int:
    """Bytes for each element of the tile, in the matrices that a kernel reads and writes."""
    matrices = [arg.ptr for arg in args if isinstance(arg, Matrix)]
    n_elements = max((matrix.numel() for matrix in matrices), default=0)
    return sum(matrix.element_size() for matrix in matrices if matrix.numel() == n_elements)


def measure(asm: Any) -> dict[str, Any]:
    """Registers, bytes of stack (above 0: registers were spilled), and how memory is accessed."""
    n_fused = 0
    if "cubin" in asm:
        n_fused = len(re.findall(r"\bfma\.rn(?:\.ftz)?\.f32", asm["ptx"]))
        widths = nvidia_access_widths(asm["ptx"])
        hints = sorted(set(re.findall(r"\bevict_\w+", asm["ptx"])))
        registers, stack = nvidia_resources(asm["cubin"])
    else:
        widths, hints = amd_access_widths(asm["amdgcn"]), []
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", asm["amdgcn"])[1])
        stack = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", asm["amdgcn"])[1])
    return {
        "hints": hints,
        "fused_multiply_adds": n_fused,
        "registers": registers,
        "stack": stack,
        "wide_bytes_per_thread": sum(width for width in widths if width >= 16),
        "two_byte_accesses": widths.count(2),
    }


def nvidia_resources(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    return int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1])


def nvidia_access_widths(ptx: str) -> list[int]:
    found = re.findall(r"\b(?:ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    return [int(vector or 1) * int(bits) // 8 for vector, bits in found]


def amd_access_widths(amdgcn: str) -> list[int]:
    found = re.findall(r"\b(?:global|buffer)_(?:load|store)_u?(short|dword)(?:x(\d))?", amdgcn)
    return [{"short": 2, "dword": 4}[unit] * int(vector or 1) for unit, vector in found]


def replace_kernels(records: list[dict[str, Any]], measure: Measure = lambda compiled: {}) -> None:
    """Let the launchers compile the kernels; ``measure`` adds to the records."""
    launchers = [
        module for name, module in sys.modules.items() if name.startswith(_launch.__name__)
    ]
    for launcher in launchers:
        for name, kernel in list(vars(launcher).items()):
            if name.endswith("_kernel"):
                setattr(launcher, name, CompilingKernel(name, kernel, records, measure))


def schedule(record: dict[str, Any]) -> str:
    if record["packed"]:
        return "packed"
    rows = "rows" if record["rows"] > 1 else "row"
    online = ", online" if record["is_online"] else ""
    cluster = ", cluster" if record["num_ctas"] > 1 else ""
    return rows + cluster + online + (", vectors" if record["vec_size"] > 1 else "")


def compile_case(
    case: Case, records: list[dict[str, Any]], shape: tuple[int, ...]
) -> list[dict[str, Any]]:
    """One record for each kernel that the case launches."""
    dtype = getattr(torch, case.dtype)
    records.clear()
    OPERATIONS[case.operation](torch.empty(shape, dtype=dtype).movedim(1, -1))
    for record in records:
        threads = record["num_warps"] * TARGETS[case.target].warp_size * record["num_ctas"]
        elements = record["rows"] * record["cols"] // threads
        record["case"] = str(case)
        record["is_online"] = record["cols"] < shape[1] and record["kernel"] != WEIGHT_SUM_KERNEL
        record["schedule"] = schedule(record)
        record["elements_per_thread"] = elements
        record["matrix_bytes_per_thread"] = elements * record.pop("matrix_bytes")
    return list(records)


def main(target: str, *flags: str) -> None:
    launched: list[dict[str, Any]] = []
    replace_kernels(launched)
    triton.runtime.driver.set_active(OfflineDriver(TARGETS[target]))
    # compile_clusters.py compiles those
    clusters.enabled = False
    cases = [
        case
        for case in CASES
        if case.target == target and ("--all" in flags or not is_exhaustive(case))
    ]
    records = [compile_case(case, launched, LAYOUTS[case.layout]) for case in cases]
    json.dump(list(itertools.chain(*records)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
