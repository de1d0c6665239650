import os

import torch

# before anything imports Triton, which binds it: without a GPU the kernels run interpreted
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from torch_softmax._ops import registration

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")
INTERPRETER_OFF = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs TRITON_INTERPRET=1, which is left off where a GPU runs the kernels",
)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("interpreted", marks=INTERPRETER_OFF),
        pytest.param("gpu", marks=[pytest.mark.gpu, NO_GPU]),
    ]
)
def device(request, cpu_path, monkeypatch):
    """Every path of the operators: the CPU's own, the kernels interpreted, the kernels on a GPU."""
    monkeypatch.setattr(registration, "INTERPRETED", request.param == "interpreted")
    return torch.device("cuda" if request.param == "gpu" else "cpu")


@pytest.fixture(
    params=[
        pytest.param("interpreted", marks=INTERPRETER_OFF),
        pytest.param("gpu", marks=[pytest.mark.gpu, NO_GPU]),
    ]
)
def kernel_device(request, cpu_path, monkeypatch):
    """The paths that run the kernels."""
    monkeypatch.setattr(registration, "INTERPRETED", request.param == "interpreted")
    return torch.device("cuda" if request.param == "gpu" else "cpu")


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


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
