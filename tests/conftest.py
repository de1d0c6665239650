import os
import tempfile
from pathlib import Path

# before PyTorch reads it: pytest-xdist fills the cores with workers, and the tensors are small
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# before anything imports Triton, which binds it: without a GPU the kernels run interpreted
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from filelock import FileLock

from devices import KERNELS, take_path
from torch_softmax._launch.specialized import Launch

# a script, which --doctest-modules would import
collect_ignore = ["host_cost.py"]


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked exhaustive as well")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        return
    exhaustive = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=exhaustive)
    items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


@pytest.fixture(params=["cpu", *KERNELS])
def device(request, cpu_path):
    """The paths of the operators: the CPU's, the kernels interpreted, the kernels on a GPU."""
    return take_path(request.param)


@pytest.fixture(params=KERNELS)
def kernel_device(request, cpu_path):
    """The paths that run the kernels."""
    return take_path(request.param)


@pytest.fixture
def launches(monkeypatch):
    """Each kernel that is launched, with its constants."""
    launched = []
    call = Launch.__call__

    def recording(launch, *args):
        launched.append((launch.kernel, launch.constexprs | launch.options))
        call(launch, *args)

    monkeypatch.setattr(Launch, "__call__", recording)
    return launched


@pytest.fixture
def not_compiled(cpu_path):
    """The CPU's path as it is without a compiler."""
    take_path("uncompiled")


@pytest.fixture(autouse=True)
def cpu_path():
    """A test that asks for no device runs as on a machine whose environment says nothing."""
    take_path("cpu")


@pytest.fixture(autouse=True)
def poison_uninitialized_memory():
    """Fill torch.empty with NaN, so an output element that no kernel wrote fails its test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gigabytes():
    """Gigabytes of a GPU, for one test at a time: other workers may run tests that need them too.

    On a CPU memory that nobody touches costs nothing.
    """
    if not torch.cuda.is_available():
        yield
        return
    with FileLock(Path(tempfile.gettempdir(), "torch_softmax_gigabytes.lock")):
        yield
        # before the lock is given up, for the next test to have them
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
