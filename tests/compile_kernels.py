"""Compile the kernels without a GPU, as the operators would start them, and print JSON.

    python tests/compile_kernels.py sm_90 bfloat16

The operators run on CPU tensors, and every kernel they would start is compiled instead, by the path
that a launch takes through Triton: signature, alignment, constants and options are those of a GPU.
A script of its own, because a process that has TRITON_INTERPRET set compiles nothing.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from torch_softmax import (
    _launch,
    cross_entropy,
    cross_entropy_with_stats,
    log_softmax,
    softmax,
)
from torch_softmax._ops import registration

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
    # rows that begin anywhere
    "odd_classes": (4, 50257),
    "odd_longest_block": (4, 15001),
    "one_row_a_program": (2, 4096),
    # as long as a block is where a kernel holds one float32 per element
    "longest_block": (2, 16384),
    "longer_than_a_block": (2, 131072),
    "channels_first": (2, 19, 4096),
    "many_channels_first": (2, 4096, 64),
}


COUNT_KERNEL = "cross_entropy_count_kernel"


class Case(NamedTuple):
    target: str
    operation: str
    layout: str
    dtype: str

    def __str__(self) -> str:
        return "-".join(self)


def class_indices(logits: Tensor) -> Tensor:
    return torch.zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.int64)


def backward_of_rows(logits: Tensor, target: Tensor, **options: Any) -> None:
    """Forward and backward in two kernels, as for a loss of each row."""
    cross_entropy(logits, target, reduction="none", **options).sum().backward()


def backward_of_everything(logits: Tensor, target: Tensor) -> None:
    """Backward of a loss to which every option and statistic contributes."""
    loss, lse, entropy, _ = cross_entropy_with_stats(
        logits, target, label_smoothing=0.1, z_loss=1e-4, softcap=30.0, logit_scale=0.5
    )
    (loss + lse.sum() + entropy.sum()).backward()


OPERATIONS = {
    "softmax": lambda x: softmax(x, 1).backward(x.detach()),
    "log_softmax": lambda x: log_softmax(x, 1).backward(x.detach()),
    "cross_entropy": lambda x: backward_of_rows(x, class_indices(x)),
    "smoothed_cross_entropy": lambda x: backward_of_rows(x, class_indices(x), label_smoothing=0.1),
    "cross_entropy_loss": lambda x: cross_entropy(x.detach(), class_indices(x)),
    "cross_entropy_step": lambda x: (2 * cross_entropy(x, class_indices(x))).backward(),
    "cross_entropy_step_with_everything": lambda x: cross_entropy(
        x, class_indices(x), label_smoothing=0.1, z_loss=1e-4, softcap=30.0, logit_scale=0.5
    ).backward(),
    "cross_entropy_with_everything": lambda x: backward_of_everything(x, class_indices(x)),
    "soft_cross_entropy": lambda x: backward_of_rows(x, x.detach()),
    "soft_cross_entropy_with_everything": lambda x: backward_of_everything(x, x.detach()),
}

# whole and walked rows, alone in a program and together; and between them every kernel
SCHEDULE_LAYOUTS = [
    "few_classes",
    "one_row_a_program",
    "longer_than_a_block",
    "many_channels_first",
]
PLAIN_OPERATIONS = ["softmax", "cross_entropy", "cross_entropy_step", "soft_cross_entropy"]
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


class CompilingKernel:
    """Stands in a launcher for a kernel: ``kernel[grid](...)`` compiles it and starts nothing."""

    def __init__(self, name: str, kernel: Any, records: list[dict[str, Any]]) -> None:
        self.name, self.kernel, self.records = name, kernel, records

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile(*args: Any, **kwargs: Any) -> None:
            record = {"kernel": self.name, "error": None, "matrix_bytes": matrix_bytes(args)}
            record |= {name: value for name, value in kwargs.items() if isinstance(value, int)}
            try:
                record |= measure(self.kernel.warmup(*args, grid=grid, **kwargs).asm)
            # whatever it is, the other kernels are compiled and the tests name all that fail
            except Exception as error:
                record["error"] = f"{error}\n{error.__cause__ or ''}"
            self.records.append(record)

        return compile


def matrix_bytes(args: tuple[Any, ...]) -> int:
    """Bytes for each element of the tile, in the matrices that a kernel reads and writes."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    largest = max(tensor.numel() for tensor in tensors)
    return sum(tensor.element_size() for tensor in tensors if tensor.numel() == largest)


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


def replace_kernels(records: list[dict[str, Any]]) -> None:
    """Let CPU tensors take the launchers, and the launchers compile."""
    registration.INTERPRETED = True
    launchers = [
        module for name, module in sys.modules.items() if name.startswith(_launch.__name__)
    ]
    for launcher in launchers:
        for name, kernel in list(vars(launcher).items()):
            if name.endswith("_kernel"):
                setattr(launcher, name, CompilingKernel(name, kernel, records))


def schedule(record: dict[str, Any]) -> str:
    rows = "rows" if record["BLOCK_ROWS"] > 1 else "row"
    walked = ", walked" if record["walked"] else ""
    return rows + walked + (", in words" if record["VECTOR"] > 1 else "")


def compile_case(case: Case, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each kernel that the case starts."""
    shape, dtype = LAYOUTS[case.layout], getattr(torch, case.dtype)
    records.clear()
    OPERATIONS[case.operation](torch.empty(shape, dtype=dtype, requires_grad=True))
    for record in records:
        # it has no matrix
        if record["kernel"] == COUNT_KERNEL:
            record |= {"BLOCK_COLS": 1, "VECTOR": 1, "matrix_bytes": 0}
        threads = record["num_warps"] * TARGETS[case.target].warp_size
        elements = record["BLOCK_ROWS"] * record["BLOCK_COLS"] // threads
        record["case"] = str(case)
        record["walked"] = record["BLOCK_COLS"] < shape[1] and record["kernel"] != COUNT_KERNEL
        record["schedule"] = schedule(record)
        record["elements_per_thread"] = elements
        record["matrix_bytes_per_thread"] = elements * record.pop("matrix_bytes")
    return list(records)


def main(target: str, dtype: str) -> None:
    started: list[dict[str, Any]] = []
    replace_kernels(started)
    triton.runtime.driver.set_active(OfflineDriver(TARGETS[target]))
    cases = [case for case in CASES if (case.target, case.dtype) == (target, dtype)]
    json.dump([record for case in cases for record in compile_case(case, started)], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
