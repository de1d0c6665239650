"""The kernels whose rows a cluster of thread blocks holds, compiled without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compile_clusters import CASES, is_exhaustive

from torch_softmax._launch import clusters

KERNELS = Path(__file__).parent
REGISTER_BUDGET = json.loads((KERNELS / "register_budget.json").read_text())
# what a reduction exchanges between warps and blocks; a tile takes 32 KiB and more
REDUCTION_BYTES = 1024
REGISTERS_OF_A_MULTIPROCESSOR = 64 * 1024

pytestmark = pytest.mark.skipif(
    clusters.triton_version() < clusters.MIN_TRITON,
    reason="needs Triton 3.9, whose reductions reach across the thread blocks of a cluster",
)
CASE = pytest.mark.parametrize(
    "case",
    [
        pytest.param(str(case), marks=[pytest.mark.exhaustive] if is_exhaustive(case) else [])
        for case in CASES
    ],
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, pytestconfig):
    """Records of the kernels that each case launches, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton_cache"))
    everything = pytestconfig.getoption("--all")
    flags = ["--json", "--all"] if everything else ["--json"]
    cases = [case for case in CASES if everything or not is_exhaustive(case)]
    records = []
    for target_and_dtype in dict.fromkeys((case.target, case.dtype) for case in cases):
        command = [sys.executable, KERNELS / "compile_clusters.py", *target_and_dtype, *flags]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        records += json.loads(process.stdout)
    return {
        str(case): [record for record in records if record["case"] == str(case)] for case in CASES
    }


def in_clusters(compiled, case):
    return [record for record in compiled[case] if record["num_ctas"] > 1]


@CASE
def test_cluster_schedules_compile_or_leave_the_row_to_the_online_kernels(compiled, case):
    errors = [record["error"] for record in compiled[case] if record["error"]]
    assert compiled[case] and not errors, "\n".join(errors)
    for record in compiled[case]:
        is_online = record["kernel"].endswith("_online_kernel")
        assert record["num_ctas"] in ((1,) if is_online else (1, 2, 4, 8))


@CASE
def test_cluster_schedules_hold_rows_of_131072_columns(compiled, case):
    # the most probabilities with every option that fit are 65536
    columns, options = int(case.split("-")[2]), case.split("-")[1]
    limit = 65536 if options == "probability_loss_with_everything" else 131072
    if columns % 16 == 0 and columns <= limit:
        assert in_clusters(compiled, case)
        assert not any("online" in record["kernel"] for record in compiled[case])


@CASE
def test_cluster_schedules_hold_rows_of_262144_columns_of_the_plain_operators(compiled, case):
    if case.split("-")[1:3] in (["softmax", "262144"], ["log_softmax", "262144"]):
        assert in_clusters(compiled, case)[0]["kernel"] == "softmax_forward_kernel"
    elif case.split("-")[1:3] == ["loss", "262144"]:
        assert in_clusters(compiled, case)[0]["kernel"] == "cross_entropy_loss_kernel"


@CASE
def test_cluster_schedules_spill_no_registers_and_keep_within_their_budget(compiled, case):
    dtype = case.rpartition("-")[2]
    for record in in_clusters(compiled, case):
        budget = REGISTER_BUDGET[record["kernel"]][dtype][record["schedule"]]
        assert record["stack"] == 0 and record["registers"] <= budget, record


@CASE
def test_cluster_schedules_of_plain_rows_let_two_programs_share_a_multiprocessor(compiled, case):
    target, operation, columns, dtype = case.split("-")
    plain = operation in ("softmax", "log_softmax", "loss") and int(columns) in (65536, 131072)
    for record in in_clusters(compiled, case):
        if (
            plain
            and (target, dtype) == ("sm_90", "bfloat16")
            and "backward" not in record["kernel"]
        ):
            allocated = -(-record["registers"] // 8) * 8 * 32 * record["num_warps"]
            assert REGISTERS_OF_A_MULTIPROCESSOR // allocated >= 2, record


@CASE
def test_cluster_schedules_move_each_element_once_in_vectors(compiled, case):
    for record in in_clusters(compiled, case):
        moved, matrices = record["wide_bytes_per_thread"], record["matrix_bytes_per_thread"]
        # weights of classes are loaded too, and with a softcap logits again, from the cache
        is_more = "weighted" in case or "everything" in case
        assert moved >= matrices if is_more else moved == matrices, record


@CASE
def test_cluster_schedules_reduce_across_blocks_and_move_no_tile_between_them(compiled, case):
    for record in in_clusters(compiled, case):
        assert record["cluster_barriers"] >= 2, record
        assert record["shared"] <= REDUCTION_BYTES, record


# in place, a block may read the logit at the target from the part of another block
@CASE
def test_cluster_schedules_have_a_cluster_barrier_between_reads_and_writes(compiled, case):
    for record in in_clusters(compiled, case):
        assert record["barriers_before_stores"] >= 1, record


@CASE
def test_cluster_schedules_count_a_program_once(compiled, case):
    for record in in_clusters(compiled, case):
        has_counter = record["kernel"] == "cross_entropy_loss_kernel"
        assert record["atomics"] == record["atomics_of_one_thread"] == has_counter, record
