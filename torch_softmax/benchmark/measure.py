"""Measure all providers on one case, in balanced order."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

import torch.compiler
from torch import Tensor
from torch._functorch import config as autograd_config

from torch_softmax.benchmark.cases import Case
from torch_softmax.benchmark.providers import PEERS, Provider, eager
from torch_softmax.benchmark.report import Measurement
from torch_softmax.benchmark.timing import interleaved, spread
from torch_softmax.benchmark.workload import Inputs, Workload, make_inputs

WARM_UP_PASSES = 3
# relative error of a whole result; that of bfloat16 is below 0.01
MAX_ERROR = 0.03


class Machine(Protocol):
    """A device to measure on: ``cpu.Cpu`` or ``cuda.Cuda``."""

    device: ClassVar[str]
    clocks: Mapping[str, Callable[[Workload], Callable[[], float] | None]]

    @property
    def threads(self) -> int | None: ...
    def activate(self) -> None: ...
    def describe(self) -> dict[str, str]: ...
    def copy_bandwidth(self) -> float: ...
    def n_sets(self, case: Case) -> int: ...
    def synchronize(self) -> None: ...
    def peak_bytes(self, step: Callable[[], object]) -> int: ...
    def count_syncs(self, step: Callable[[], object]) -> int | None: ...


def measure(
    case: Case,
    machine: Machine,
    providers: Sequence[Provider],
    *,
    copy_bandwidth: float,
    repeats: int,
    seed: int,
) -> list[Measurement]:
    """Measurements of each provider that has the operator."""
    with (
        # no caches, so the first call includes compilation
        torch.compiler.config.patch(force_disable_caches=True),  # type: ignore[attr-defined]
        warnings.catch_warnings(),
        # a backward measured alone runs many times and must keep its buffers
        autograd_config.patch(donated_buffer=case.mode != "backward"),
    ):
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        # capture of a CUDA graph runs on a separate stream
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        inputs = make_inputs(case, machine.n_sets(case), machine.device, seed)
        expected = pytorch_result(case, inputs[:1])
        known: dict[str, dict[str, Any]] = {}
        works = []
        for provider in providers:
            work, fields = first_calls(case, machine, provider, inputs, expected)
            if fields:
                known[provider.name] = fields
            if work:
                works.append(work)
        del expected
        times = clock(machine, works, repeats)
    return [
        Measurement(
            operator=case.operator,
            mode=case.mode,
            shape=case.shape,
            dtype=case.dtype,
            ignored=case.ignored,
            threads=machine.threads,
            provider=name,
            floor_bytes=case.floor_bytes,
            copy_bandwidth=copy_bandwidth,
            times=times.get(name, {}),
            **fields,
        )
        for name, fields in known.items()
    ]


def first_calls(
    case: Case,
    machine: Machine,
    provider: Provider,
    inputs: Sequence[Inputs],
    expected: Tensor | None,
) -> tuple[Workload | None, dict[str, Any]]:
    """The warmed-up workload of a provider, and fields of its Measurement; None, {} without one."""
    try:
        function = provider.make(case)
        if function is None:
            return None, {}
        work = Workload(case, provider, function, inputs)
        only = Workload(case, provider, function, inputs[:1])
        machine.synchronize()
        start = time.perf_counter()
        result = only.run(only.prepare())
        machine.synchronize()
        fields: dict[str, Any] = {"first_call": time.perf_counter() - start}
        check(result, expected)
        del result
        # the first pass may allocate and synchronize for memory that it keeps
        work.run(work.prepare())
        for key, look in (("peak_bytes", machine.peak_bytes), ("syncs", machine.count_syncs)):
            prepared = only.prepare()
            fields[key] = look(partial(only.run, prepared))
        for _ in range(WARM_UP_PASSES):
            work.run(work.prepare())
        return work, fields
    # a provider may raise anything for unsupported shapes; the others are still measured
    except Exception as error:
        return None, {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}


def pytorch_result(case: Case, inputs: Sequence[Inputs]) -> Tensor | None:
    """The expected result, or None if PyTorch runs out of memory.

    At least in float32: on a GPU PyTorch's own mean over millions of bfloat16 rows is off by 4 %.
    """
    function = eager(case)

    def widened(x: Tensor, *target: Tensor) -> Tensor:
        return function(x.to(torch.promote_types(x.dtype, torch.float32)), *target).to(x.dtype)

    work = Workload(case, PEERS["eager"][0], widened, inputs)
    try:
        return work.run(work.prepare())
    except torch.OutOfMemoryError:
        return None


def check(result: Tensor, expected: Tensor | None) -> None:
    """Raise unless the result is near PyTorch's; the time of a wrong result is meaningless."""
    # the loss of ignored rows only is NaN
    if expected is None or expected.isnan().any():
        return
    error = torch.linalg.vector_norm(result.float() - expected.float())
    # negated, so NaN is an error too
    if not error <= MAX_ERROR * torch.linalg.vector_norm(expected.float()):
        raise ValueError("the result is not what PyTorch computes")


def clock(machine: Machine, works: Sequence[Workload], repeats: int) -> dict[str, dict[str, Any]]:
    """Times of each workload by each clock that supports it."""
    times: dict[str, dict[str, Any]] = {work.name: {} for work in works}
    for name, sampler_of in machine.clocks.items():
        samplers = {work.name: sampler_of(work) for work in works}
        able = {who: sampler for who, sampler in samplers.items() if sampler}
        for who, samples in interleaved(able, repeats).items():
            times[who][name] = spread(samples)
    return times
