import ast
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from compile_kernels import CASES, OPERATIONS, is_exhaustive

ROOT = Path(__file__).parents[2]
COMPILE_KERNELS = ROOT / "tests" / "kernels" / "compile_kernels.py"

# rows that fit a tile and longer ones, one and several per program
SCHEDULES = {(together, is_online) for together in (False, True) for is_online in (False, True)}
ALIGNED_LAYOUTS = (
    "odd_classes",
    "odd_longest_block",
    "thousand_classes",
    "one_row_a_program",
    "longest_block",
    "longer_than_a_block",
    "channels_first",
    "many_channels_first",
)


# for each kernel, dtype and schedule the registers that a thread may take on sm_90, over all
# options and both ends of the supported Triton versions, rounded up to whole allocations of 8
REGISTER_BUDGET = json.loads((ROOT / "tests" / "kernels" / "register_budget.json").read_text())
# ptxas gives up as much by itself where one more program then fits beside the others
TRADED_STACK = 8
REGISTERS_OF_AN_SM = 64 * 1024


def parameters(condition=lambda case: True):
    """The cases of which the condition holds, marked exhaustive where another stands for them."""
    return [
        pytest.param(str(case), marks=[pytest.mark.exhaustive] if is_exhaustive(case) else [])
        for case in CASES
        if condition(case)
    ]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, pytestconfig):
    """Records of the kernels that each case launches, compiled in processes without interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        # a kernel from an earlier run would be read from Triton's own cache
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton_cache")),
    }

    flags = ["--all"] if pytestconfig.getoption("--all") else []

    def compile_for(target):
        process = subprocess.run(
            [sys.executable, COMPILE_KERNELS, target, *flags],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    jobs = dict.fromkeys(case.target for case in CASES)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        records = [record for job in pool.map(compile_for, jobs) for record in job]
    return {
        str(case): [record for record in records if record["case"] == str(case)] for case in CASES
    }


def measured(compiled, case):
    """What was compiled; what was not fails a test of its own."""
    return [record for record in compiled[case] if not record["error"]]


def reads_twice(record):
    """Whether rows are read again: a loss without its gradient needs them once."""
    return record["kernel"].endswith("online_kernel") and "-loss_alone-" not in record["case"]


def kernels():
    """Names of all kernels, from the sources: a new one is not to be forgotten here."""
    return [
        node.name
        for path in sorted((ROOT / "triton_kernels").glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    ]


@pytest.mark.parametrize("case", parameters(lambda case: case.target.startswith("sm_")))
def test_compile_targets_round_products_as_the_interpreter_does(compiled, case):
    for record in measured(compiled, case):
        # the others take logarithms and exact exponentials, which are made of fused multiply-adds
        if record["kernel"].endswith("_backward_kernel") and "log_softmax" not in case:
            assert record["fused_multiply_adds"] == 0


@pytest.mark.parametrize("case", parameters())
def test_compile_targets_accept_the_kernels(compiled, case):
    assert compiled[case], "the launcher launched no kernel"
    errors = [
        f"{record['kernel']}: {record['error']}" for record in compiled[case] if record["error"]
    ]
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("kernel", kernels())
def test_compile_targets_include_the_kernel(compiled, kernel):
    reached = {record["kernel"] for records in compiled.values() for record in records}
    assert kernel in reached, "give compile_kernels.py an operation that launches it"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_compile_targets_cover_every_schedule(compiled, operation):
    records = [
        record for case in CASES if case.operation == operation for record in compiled[str(case)]
    ]
    assert {(record["rows"] > 1, record["is_online"]) for record in records} == SCHEDULES


@pytest.mark.parametrize("case", parameters(lambda case: case.target == "sm_90"))
def test_compile_targets_do_not_spill(compiled, case):
    for record in measured(compiled, case):
        limit = min(REGISTERS_OF_AN_SM // (32 * record["num_warps"]), 255)
        # registers left over: what is on the stack is there by choice
        allowed = TRADED_STACK if record["registers"] <= limit // 2 else 0
        assert record["stack"] <= allowed, f"{record['kernel']} spills: {record}"


@pytest.mark.parametrize("case", parameters(lambda case: case.target == "sm_90"))
def test_compile_targets_keep_within_the_register_budget(compiled, case):
    dtype = case.rpartition("-")[2]
    for record in measured(compiled, case):
        budget = REGISTER_BUDGET[record["kernel"]][dtype][record["schedule"]]
        assert record["registers"] <= budget, record


@pytest.mark.parametrize("case", parameters(lambda case: case.target == "sm_90"))
def test_compile_targets_read_few_online_rows_at_once(compiled, case):
    # the L2 cache holds online rows until their second read: of 131072 bfloat16, two for each of
    # 132 SMs, half read on average, make up 34 MB
    for record in measured(compiled, case):
        if reads_twice(record) and record["rows"] == 1:
            allocated = -(-record["registers"] // 8) * 8 * 32 * record["num_warps"]
            assert REGISTERS_OF_AN_SM // allocated <= 2, record


@pytest.mark.parametrize("case", parameters(lambda case: case.target == "sm_90"))
def test_compile_targets_hint_what_is_read_again(compiled, case):
    for record in measured(compiled, case):
        hints = ["evict_first", "evict_last"] if reads_twice(record) else []
        assert record["hints"] == hints, record


@pytest.mark.parametrize("case", parameters(lambda case: case.layout in ALIGNED_LAYOUTS))
def test_compile_targets_move_16_bytes_at_a_time(compiled, case):
    for record in measured(compiled, case):
        assert record["wide_bytes_per_thread"] >= record["matrix_bytes_per_thread"], record


# of two bytes are here only the elements of matrices, so that narrow accesses to them can be told
@pytest.mark.parametrize(
    "case",
    parameters(
        lambda case: (
            case.layout in ALIGNED_LAYOUTS
            and case.target == "sm_90"
            and case.dtype in ("float16", "bfloat16")
        )
    ),
)
def test_compile_targets_move_no_matrix_2_bytes_at_a_time(compiled, case):
    for record in measured(compiled, case):
        # beside its tile it reads the target's logit of each row, and stores its gradient
        reads_targets = record["kernel"] in (
            "cross_entropy_forward_kernel",
            "cross_entropy_loss_kernel",
            "cross_entropy_loss_online_kernel",
        )
        # the heads and tails of unaligned rows
        stores_ends = record["vec_size"] > 1
        allowed = record["elements_per_thread"] * (reads_targets + stores_ends)
        # the loss, or the factor of its gradient
        allowed += "_loss_" in record["kernel"] or record["kernel"] == "scale_kernel"
        assert record["two_byte_accesses"] <= allowed, record
