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
from triton.runtime.jit import KernelInterface

from torch_softmax._cpu import compiled_cross_entropy
from torch_softmax._ops import registration

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")
INTERPRETER_OFF = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs TRITON_INTERPRET=1, which is left off where a GPU runs the kernels",
)
NOT_COMPILED = pytest.mark.skipif(
    compiled_cross_entropy.compiled is None,
    reason="needs torch_softmax._cpu.compiled: pip install -e . with a C compiler",
)
KERNELS = [
    pytest.param("interpreted", marks=INTERPRETER_OFF),
    pytest.param("gpu", marks=[pytest.mark.gpu, NO_GPU]),
]
# in place of the paths of `device`, where the CPU computes another way without a compiler
with_and_without_compiler = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("uncompiled", marks=NOT_COMPILED), *KERNELS], indirect=True
)


def needs_gpus(count):
    """Skip a test where there are fewer GPUs."""
    found = torch.cuda.device_count()
    skip = pytest.mark.skipif(found < count, reason=f"needs {count} GPUs, found {found}")
    return lambda test: pytest.mark.gpu(skip(test))


@pytest.fixture(params=["cpu", *KERNELS])
def device(request, cpu_path, monkeypatch):
    """The paths of the operators: the CPU's, the kernels interpreted, the kernels on a GPU."""
    return take_path(request.param, monkeypatch)


@pytest.fixture(params=KERNELS)
def kernel_device(request, cpu_path, monkeypatch):
    """The paths that run the kernels."""
    return take_path(request.param, monkeypatch)


def take_path(path, monkeypatch):
    monkeypatch.setattr(registration, "INTERPRETED", path == "interpreted")
    if path == "uncompiled":
        monkeypatch.setattr(compiled_cross_entropy, "compiled", None)
    return torch.device("cuda" if path == "gpu" else "cpu")


def runs_kernels(device):
    """Whether the operators of this test run kernels for tensors on ``device``."""
    return device.type != "cpu" or registration.INTERPRETED


@pytest.fixture
def launches(monkeypatch):
    """Each kernel that is launched, with its constants."""
    launched = []
    subscript = KernelInterface.__getitem__

    def recording(kernel, grid):
        def launch(*args, **constants):
            launched.append((kernel, constants))
            return subscript(kernel, grid)(*args, **constants)

        return launch

    monkeypatch.setattr(KernelInterface, "__getitem__", recording)
    return launched


@pytest.fixture
def not_compiled(monkeypatch):
    """The CPU's path as it is without a compiler."""
    take_path("uncompiled", monkeypatch)


@pytest.fixture(autouse=True)
def cpu_path(monkeypatch):
    """A test that asks for no device runs as on a machine whose environment says nothing."""
    monkeypatch.setattr(registration, "INTERPRETED", False)


@pytest.fixture(autouse=True)
def poison_uninitialized_memory():
    """Fill torch.empty with NaN, so an output element that no kernel wrote fails its test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gigabytes():
    """Many of them, which a GPU has for one test at a time: pytest-xdist may run others beside it.

    On a CPU memory that nobody touches is none.
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
