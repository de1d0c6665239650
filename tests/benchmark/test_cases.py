"""What is measured: cases, their shapes and inputs, and the bytes that must move."""

import pytest
import torch

from torch_softmax.benchmark.cases import OPERATORS, Case, cases_of, shapes_of
from torch_softmax.benchmark.workload import IGNORE_INDEX, make_inputs


# the table of floors, in passes over the matrix
@pytest.mark.parametrize(
    ("operator", "mode", "passes"),
    [
        ("softmax", "forward", 2),
        ("softmax", "backward", 3),
        ("softmax", "step", 5),
        ("log_softmax", "forward", 2),
        ("log_softmax", "backward", 3),
        ("log_softmax", "step", 5),
        ("cross_entropy", "forward", 1),
        ("cross_entropy", "step", 2),
    ],
)
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float64", 8)])
def test_floor_is_the_bytes_that_must_move(operator, mode, passes, dtype, size):
    assert Case(operator, mode, (3, 5, 7), dtype).floor_bytes == passes * 3 * 5 * 7 * size


def test_floor_of_a_large_step_is_the_published_one():
    step = Case("cross_entropy", "step", (8192, 32_000), "bfloat16")
    assert step.floor_bytes / 4.3e12 == pytest.approx(0.244e-3, rel=1e-3)


def test_shapes_are_names_or_sizes():
    assert shapes_of(["small", "8x10", "2x21x4x4", "8x10"], "cpu") == [
        (128, 10),
        (1024, 10),
        (60_000, 10),
        (8, 10),
        (2, 21, 4, 4),
    ]
    assert set(shapes_of(["all"], "cpu")) < set(shapes_of(["all"], "cuda"))


def test_shapes_sweep_the_classes_on_a_gpu():
    assert {2**power for power in range(10, 19)} < {c for _, c in shapes_of(["llm"], "cuda")}


def test_cases_are_those_with_a_meaning():
    cases = cases_of(OPERATORS, None, [(4, 3)], ["float32"], [0.0, 0.1])
    assert [(case.operator, case.mode, case.ignored) for case in cases] == [
        ("softmax", "forward", 0.0),
        ("softmax", "backward", 0.0),
        ("log_softmax", "forward", 0.0),
        ("log_softmax", "backward", 0.0),
        ("cross_entropy", "forward", 0.0),
        ("cross_entropy", "step", 0.0),
        ("cross_entropy", "forward", 0.1),
        ("cross_entropy", "step", 0.1),
    ]


def test_inputs_follow_the_seed_and_ignore_the_share():
    case = Case("cross_entropy", "step", (4000, 3), "float32", ignored=0.1)
    first, second = make_inputs(case, 2, "cpu", seed=1)
    (again,) = make_inputs(case, 1, "cpu", seed=1)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.x, second.x)
    assert (first.target == IGNORE_INDEX).float().mean() == pytest.approx(0.1, abs=0.03)
