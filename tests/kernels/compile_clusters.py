"""Compile the kernels whose rows a cluster of thread blocks holds, and print a table or JSON.

    python tests/kernels/compile_clusters.py sm_90 bfloat16

The table has the registers of a thread and what they spill, in bytes; the bytes that a thread moves
in accesses of 16 bytes, against those of its elements of the matrices; and the barriers at which
the blocks of a cluster wait. ``compile_kernels.py`` says how kernels are compiled without a GPU.
"""

import itertools
import json
import re
import sys
from typing import Any

import triton
from compile_kernels import (
    OPERATIONS,
    TARGETS,
    Case,
    OfflineDriver,
    compile_case,
    replace_kernels,
)

# the columns of every schedule, and vocabularies
COLUMNS = [50257, 65536, 128256, 128001, 131072, 151936, 262144]
WHOLE_ROW_OPERATIONS = [
    name for name in OPERATIONS if "cross_entropy" not in name and name != "loss_alone"
]
CASES = [
    Case(target, operation, f"{columns}", dtype)
    for target, dtype in (
        ("sm_90", "bfloat16"),
        ("sm_90", "float16"),
        ("sm_90", "float32"),
        ("sm_100", "bfloat16"),
        ("sm_100", "float32"),
    )
    for operation, columns in itertools.product(WHOLE_ROW_OPERATIONS, COLUMNS)
]
CLUSTER_BARRIER = "barrier.cluster.wait"
HEADINGS = {
    "case": 62,
    "kernel": 26,
    "num_ctas": 9,
    "num_warps": 10,
    "registers": 10,
    "stack": 6,
    "wide_bytes_per_thread": 22,
    "matrix_bytes_per_thread": 24,
    "cluster_barriers": 16,
}


def is_exhaustive(case: Case) -> bool:
    """Whether the case is compiled with ``--all`` alone: one for each kernel stands for them."""
    return (case.target, case.dtype, case.layout) != ("sm_90", "bfloat16", "131072") or (
        case.operation not in ("softmax", "loss")
    )


def measure_cluster(compiled: Any) -> dict[str, Any]:
    """Shared memory, cluster barriers and what they order, and which thread adds to a counter."""
    ptx = compiled.asm["ptx"]
    before_stores, _, _ = ptx.partition("st.global")
    # a block reads the elements of its own part of a tile in vectors, and others one at a time
    _, _, after_loads = before_stores.rpartition("ld.global.b")
    atomics = list(re.finditer(r"@(%p\d+) atom\.", ptx))
    return {
        "shared": compiled.metadata.shared,
        "cluster_barriers": ptx.count(CLUSTER_BARRIER),
        "barriers_before_stores": after_loads.count(CLUSTER_BARRIER),
        "atomics": len(atomics),
        "atomics_of_one_thread": sum(
            depends_on(ptx, atomic.start(), atomic[1], register)
            for atomic in atomics
            for register in ("%cluster_ctarank", "%tid.x")
        )
        // 2,
    }


def depends_on(ptx: str, end: int, register: str, source: str) -> bool:
    """Whether the value of a register at offset ``end`` is computed from another register."""
    needed = {register}
    for line in reversed(ptx[:end].splitlines()):
        target, *sources = re.findall(r"%[\w.]+", line) or [""]
        if target in needed:
            needed.update(sources)
    return source in needed


def print_table(records: list[dict[str, Any]]) -> None:
    print(*(name.ljust(width) for name, width in HEADINGS.items()))
    for record in records:
        print(*(str(record.get(name, "")).ljust(width) for name, width in HEADINGS.items()))


def main(target: str, dtype: str, *flags: str) -> None:
    launched: list[dict[str, Any]] = []
    replace_kernels(launched, measure_cluster)
    triton.runtime.driver.set_active(OfflineDriver(TARGETS[target]))
    found: list[dict[str, Any]] = []
    for case in CASES:
        wanted = "--json" not in flags or "--all" in flags or not is_exhaustive(case)
        if (case.target, case.dtype) == (target, dtype) and wanted:
            found += compile_case(case, launched, (2, int(case.layout)))
    if "--json" in flags:
        json.dump(found, sys.stdout)
    else:
        print_table([record for record in found if record["num_ctas"] > 1])


if __name__ == "__main__":
    main(*sys.argv[1:])
