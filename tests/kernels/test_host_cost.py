"""The launches of a training step and their cost on the host, over a driver without a device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torch_softmax._launch import clusters

TESTS = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CC", "cc"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("needs a C compiler for the stub of libcuda")
    stub = tmp_path_factory.mktemp("stub")
    library, source = stub / "libcuda.so.1", TESTS / "libcuda_stub.c"
    soname = f"-Wl,-soname,{library.name}"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", soname, "-o", library, source], check=True)
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_LIBCUDA_PATH": str(stub), "LD_PRELOAD": str(library)}
    # PyTorch warns of a driver that it cannot use
    command = [sys.executable, "-W", "ignore", TESTS / "host_cost.py", library]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def launch(kernel, programs, warps, just_in_time=False):
    """A launch along one axis without attributes: no cluster, no programmatic launch."""
    grid = [programs, 1, 1]
    return {
        "kernel": kernel,
        "grid": grid,
        "warps": warps,
        "attributes": 0,
        "cluster_blocks": 0,
        "just_in_time": just_in_time,
    }


def test_host_launches_one_kernel_forward_and_one_backward_for_few_rows(report):
    assert report["few rows again"] == {
        "forward": [launch("cross_entropy_loss_kernel", 1, 4)],
        "backward": [launch("scale_kernel", 1, 4)],
    }


def test_host_compiles_with_the_first_launch(report):
    step = report["few rows"]
    assert all(launch["just_in_time"] for launch in step["forward"] + step["backward"])


@pytest.mark.parametrize("step", ["sum", "many rows"])
def test_host_compiles_each_specialization_of_a_kernel(report, step):
    # the sum has another tile than the steps before it, and the mean another kind of denominator
    assert report[step]["forward"][-1]["just_in_time"]


def test_host_launches_two_kernels_forward_and_one_backward_for_many_rows(report):
    # 4 rows a program, and 4096 targets
    step = report["other rows of the same specialization"]
    assert step["forward"] == [
        launch("weight_sum_kernel", 2, 8),
        launch("cross_entropy_loss_kernel", 1600, 4),
    ]
    (backward,) = step["backward"]
    assert backward["kernel"] == "scale_kernel" and not backward["just_in_time"]


@pytest.mark.skipif(
    clusters.triton_version() < clusters.MIN_TRITON,
    reason="needs Triton 3.9, whose reductions reach across the thread blocks of a cluster",
)
@pytest.mark.parametrize(
    ("step", "just_in_time"), [("long rows", True), ("long rows again", False)]
)
def test_host_launches_a_cluster_for_each_long_row(report, step, just_in_time):
    weight_sum, loss = report[step]["forward"]
    assert weight_sum == launch("weight_sum_kernel", 1, 8, weight_sum["just_in_time"])
    # two programs of 8 thread blocks: their number, and that they spread over multiprocessors
    cluster = {"attributes": 2, "cluster_blocks": 8}
    assert loss == launch("cross_entropy_loss_kernel", 2 * 8, 16, just_in_time) | cluster


@pytest.mark.skipif(
    clusters.triton_version() >= clusters.MIN_TRITON, reason="Triton 3.9 reduces across clusters"
)
def test_host_launches_no_cluster_before_triton_3_9(report):
    _weight_sum, loss = report["long rows again"]["forward"]
    assert loss == launch("cross_entropy_loss_online_kernel", 2, 32)


def test_host_sums_no_weights_for_a_sum(report):
    (forward,) = report["sum"]["forward"]
    assert forward["kernel"] == "cross_entropy_loss_kernel" and forward["grid"] == [1200, 1, 1]


def test_host_lets_a_profiler_see_each_launch(report):
    assert report["seen by a hook"] == 2


def test_host_cost_of_a_step_is_near_that_of_torch(report, record_property):
    times = report["microseconds"]
    record_property("microseconds", times)
    print(times)
    # torch computes the loss in its time, and this machine's other processes disturb both
    assert times["torch_softmax"] < 3 * times["torch"]
