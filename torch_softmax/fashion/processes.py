"""Several processes that train one model under torchrun.

On two machines, run this on the first, which owns the folder of the run, and with ``--node-rank 1``
on the second::

    torchrun --nnodes 2 --node-rank 0 --master-addr node0 --master-port 29400 \\
        --nproc-per-node 2 train_fashion.py

Each process augments and normalizes its own shard of a batch. The store that outlives a restart
tells which run is theirs, so ``--max-restarts N`` continues it.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.elastic.multiprocessing.errors import record

from torch_softmax._command_line import UserError, run_program
from torch_softmax.fashion.errors import DataError

# a process that does not answer for this long counts as dead
TIMEOUT = timedelta(minutes=5)


def join_processes(device: torch.device) -> distributed.Store | None:
    """Meet the processes that torchrun started, if it did; return what outlives a restart."""
    if not distributed.is_torchelastic_launched():
        return None
    if os.environ.get("OMP_NUM_THREADS") == "1":
        # torchrun's default, with which the processes of a machine leave most of it idle
        has_affinity = hasattr(os, "sched_getaffinity")
        n_cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        torch.set_num_threads(max(1, n_cpus // int(os.environ["LOCAL_WORLD_SIZE"])))
    backend = "gloo"
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
        backend = f"cpu:gloo,{device.type}:{distributed.get_default_backend_for_device(device)}"
    store, number, count = next(distributed.rendezvous("env://", timeout=TIMEOUT))
    # after a restart the store still has the addresses of the dead processes
    prefix = os.environ["TORCHELASTIC_RESTART_COUNT"]
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore(prefix, store),
        rank=number,
        world_size=count,
        timeout=TIMEOUT,
    )
    return store


def rank() -> int:
    """The number of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def shard(x: Tensor) -> Tensor:
    """The rows of a batch that this process takes."""
    return x[rank() :: world_size()]


def all_reduce(x: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(x)
    return x


def broadcast_from_rank0(make: Callable[[], Any]) -> Any:
    """Call a function in the first process, which owns the files, and return or raise in all."""
    made = None
    if rank() == 0:
        try:
            made = make()
        except UserError as error:
            made = error
    if distributed.is_initialized():
        box = [made]
        distributed.broadcast_object_list(box, device=torch.device("cpu"))
        made = box[0]
    if isinstance(made, UserError):
        raise made
    return made


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the running statistics of the first one.

    Each process normalizes by its shard of a batch, so their running statistics differ.
    """
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def require_equal_settings(settings: dict[str, Any]) -> None:
    """Refuse processes with different settings, such as one of them without the data."""
    if difference := first_difference(broadcast_from_rank0(lambda: settings), settings):
        flag, value, mine = difference
        raise UserError(f"all processes need the same {flag}, got {value} and {mine}")


def first_difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that differs, with its two values."""
    for flag in first:
        if first[flag] != second.get(flag):
            return flag, first[flag], second.get(flag)
    return None


def reduce_loss(loss: float, signals: list[int]) -> tuple[float, int]:
    """The mean loss of all processes, and a signal that any of them received, or 0."""
    # each row is zero in all processes but one
    of_all = torch.zeros(world_size(), 2, dtype=torch.float64)
    of_all[rank()] = torch.tensor([loss, max(signals, default=0)], dtype=torch.float64)
    all_reduce(of_all)
    return of_all[:, 0].mean().item(), int(of_all[:, 1].max())


def run_script(main: Callable[[], object]) -> int:
    """The exit code of the example, in one process or under torchrun."""

    def call() -> int:
        try:
            if distributed.is_torchelastic_launched():
                run_under_torchrun(main)
            main()
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise DataError(str(error)) from error
        return 0

    return run_program("train_fashion.py", call)


def run_under_torchrun(main: Callable[[], object]) -> None:
    """Call main and end the process, or raise for torchrun to report the reason."""
    record(main)()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # threads of PyTorch that outlive the group can abort the process while it exits
    os._exit(0)
