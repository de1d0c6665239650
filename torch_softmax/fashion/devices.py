"""The device and the precision to compute in, and the refusal of what does not work here."""

import argparse
import importlib.util
import os
import shutil
from typing import NamedTuple

import torch
from torch import distributed

import torch_softmax
from torch_softmax._command_line import UserError
from torch_softmax.fashion.errors import one_line
from torch_softmax.fashion.processes import join_processes, world_size

TRITON_DEVICES = ("cuda", "xpu")  # ROCm's are called cuda too


def choose_device(name: str) -> tuple[torch.device, str]:
    """The device and why it was chosen."""
    why = "as asked"
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or accelerator.type not in TRITON_DEVICES:
            return torch.device("cpu"), "no accelerator found that Triton serves"
        name, why = accelerator.type, "the accelerator found"
    if distributed.is_torchelastic_launched() and name.startswith(TRITON_DEVICES):
        if name not in TRITON_DEVICES:
            raise UserError(f"--device needs no number under torchrun, got {name!r}")
        name += f":{os.environ['LOCAL_RANK']}"
    try:
        # computed and read: "meta" does not compute, and Triton needs a C compiler
        torch_softmax.softmax(torch.zeros(1, device=name), dim=0).item()
    # a compiler that is missing or fails raises anything
    except Exception as error:
        reason = one_line(error).partition(". ")[0]
        raise UserError(f"--device needs one that computes here, got {name!r}: {reason}") from error
    return torch.device(name), why


def choose_precision(name: str, device: torch.device) -> tuple[bool, str]:
    """Whether to use bf16, and why."""
    if name != "auto":
        return name == "bf16", "as asked"
    if device.type == "cpu":
        # without these instructions bf16 is slower than float32
        wanted = ("avx512_bf16", "amx_bf16")
        found = [name for name in wanted if torch.cpu.get_capabilities().get(name)]
        return bool(found), f"the CPU has {' and '.join(found) or 'no bf16 instructions'}"
    is_supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    use_bf16 = is_supported is not None and is_supported(including_emulation=False)
    return use_bf16, f"the accelerator has {'' if use_bf16 else 'no '}bf16 instructions"


def require_compiler(device: torch.device) -> None:
    """Refuse --compile where it would end in a traceback of torch.compile."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError("--compile needs a C++ compiler on a CPU, got none: apt-get install g++")


def require_kernels(device: torch.device) -> None:
    """Refuse a run whose loss would not be computed by the Triton kernels."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("--loss triton needs the package triton, got an environment without it")
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type not in TRITON_DEVICES and not interpreted:
        raise UserError(
            "--loss triton needs a GPU, or a CPU and TRITON_INTERPRET=1 in the environment, "
            f"got device {device} without that"
        )


class Setup(NamedTuple):
    """Where a training runs."""

    device: torch.device
    use_bf16: bool
    store: distributed.Store | None  # of torchrun
    description: str

    @property
    def precision(self) -> str:
        return "bf16" if self.use_bf16 else "fp32"


def set_up(options: argparse.Namespace) -> Setup:
    """Choose the device and the precision, refuse what does not work, and join the processes."""
    device, why_device = choose_device(options.device)
    use_bf16, why_precision = choose_precision(options.precision, device)
    if options.loss == "triton":
        require_kernels(device)
    if options.compile:
        require_compiler(device)
    store = join_processes(device)
    if options.batch_size % world_size():
        raise UserError(
            f"--batch-size needs a multiple of the {world_size()} processes, "
            f"got {options.batch_size}"
        )
    precision = "bf16" if use_bf16 else "fp32"
    description = f"device {device}, {why_device}; {precision}, {why_precision}"
    return Setup(device, use_bf16, store, description)
