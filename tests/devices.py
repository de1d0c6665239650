"""The implementations that tests run, and where each of them is available."""

import os

import pytest
import torch

from torch_softmax._cpu import library
from torch_softmax._ops import cpu_path

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")
INTERPRETER_OFF = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs TRITON_INTERPRET=1, which is left off where a GPU runs the kernels",
)
NOT_COMPILED = pytest.mark.skipif(
    not library.is_available(),
    reason="needs torch_softmax._cpu.operators: pip install -e . with a C++ compiler",
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


def take_path(path):
    """Let the operators take a path, and return its device."""
    cpu_path.take("compiled" if path in ("cpu", "gpu") else path)
    return torch.device("cuda" if path == "gpu" else "cpu")


def runs_kernels(device):
    """Whether the operators of this test run kernels for tensors on ``device``."""
    return device.type != "cpu" or cpu_path.runs_kernels()
