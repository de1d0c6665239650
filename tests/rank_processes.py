"""Processes that are the ranks of a group, connected by gloo, and what each of them returned."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

TESTS = Path(__file__).parent
START = """
import sys, torch, torch.distributed as dist
folder, rank, n_ranks, module, name = sys.argv[1:]
torch.set_num_threads(1)
store = dist.FileStore(folder + "/store", int(n_ranks))
dist.init_process_group("gloo", rank=int(rank), world_size=int(n_ranks), store=store)
result = getattr(__import__(module), name)()
torch.save(result, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


class Ended:
    """How a process ended: its exit code, its errors, and the seconds it took."""

    def __init__(self, code, errors, seconds):
        self.code, self.errors, self.seconds = code, errors, seconds


def run_ranks(folder, n_ranks, function, waits_for=None):
    """Run ``function`` of a module on every rank; the processes, as they ended, in rank order.

    Those after the first ``waits_for`` are killed when these have ended.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # the C code: interpreted kernels take a millisecond for each tile
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    start = time.monotonic()
    processes = []
    for rank in range(n_ranks):
        args = [folder, rank, n_ranks, function.__module__, function.__name__]
        command = [sys.executable, "-c", START, *map(str, args)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    ended = []
    try:
        for rank, process in enumerate(processes):
            if waits_for is not None and rank >= waits_for:
                process.kill()
            _, errors = process.communicate(timeout=120)
            seconds = time.monotonic() - start
            ended.append(Ended(process.returncode, errors.decode(), seconds))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return ended


def results_of_ranks(folder, n_ranks, function):
    """What ``function`` returned on each rank."""
    for process in run_ranks(folder, n_ranks, function):
        assert process.code == 0, process.errors
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(n_ranks)]
