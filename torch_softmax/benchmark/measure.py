"""All providers on one case, in balanced order."""

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
# of a whole result in relation to PyTorch's: bfloat16 stays under a hundredth
MAX_ERROR = 0.03


class Machine(Protocol):
    """A device that measures: ``cpu.Cpu`` or ``cuda.Cuda``."""

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
    """What each provider that has the operator takes for it."""
    with (
        # cached code would hide what the first call costs
        torch.compiler.config.patch(force_disable_caches=True),  # type: ignore[attr-defined]
        warnings.catch_warnings(),
        # a backward that is measured by itself runs many times, and needs its buffers again
        autograd_config.patch(donated_buffer=case.mode != "backward"),
    ):
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        # who is captured in a CUDA graph runs on a stream of its own
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        inputs = make_inputs(case, machine.n_sets(case), machine.device, seed)
        expected = pytorch_result(case, inputs[:1])
        about: dict[str, dict[str, Any]] = {}
        works = []
        for provider in providers:
            work, about_it = first_calls(case, machine, provider, inputs, expected)
            if about_it:
                about[provider.name] = about_it
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
            **about_it,
        )
        for name, about_it in about.items()
    ]


def first_calls(
    case: Case,
    machine: Machine,
    provider: Provider,
    inputs: Sequence[Inputs],
    expected: Tensor | None,
) -> tuple[Workload | None, dict[str, Any]]:
    """A provider made ready, and what its first calls tell; neither where it has no operator."""
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
        about: dict[str, Any] = {"first_call": time.perf_counter() - start}
        check(result, expected)
        del result
        # a first pass may allocate and wait for what it keeps
        work.run(work.prepare())
        for key, look in (("peak_bytes", machine.peak_bytes), ("syncs", machine.count_syncs)):
            prepared = only.prepare()
            about[key] = look(partial(only.run, prepared))
        for _ in range(WARM_UP_PASSES):
            work.run(work.prepare())
        return work, about
    # whatever a peer raises on a shape that it cannot do: the others are measured all the same
    except Exception as error:
        return None, {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}


def pytorch_result(case: Case, inputs: Sequence[Inputs]) -> Tensor | None:
    """What everybody should compute, or None where PyTorch's memory does not suffice.

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
    """Raise unless the result is near: who computes something else has no time worth telling."""
    # the loss of nothing but ignored rows is NaN for everybody
    if expected is None or expected.isnan().any():
        return
    error = torch.linalg.vector_norm(result.float() - expected.float())
    # negated, so that NaN is an error too
    if not error <= MAX_ERROR * torch.linalg.vector_norm(expected.float()):
        raise ValueError("the result is not what PyTorch computes")


def clock(machine: Machine, works: Sequence[Workload], repeats: int) -> dict[str, dict[str, Any]]:
    """Times of each by each of the machine's clocks that can tell."""
    times: dict[str, dict[str, Any]] = {work.name: {} for work in works}
    for name, sampler_of in machine.clocks.items():
        samplers = {work.name: sampler_of(work) for work in works}
        able = {who: sampler for who, sampler in samplers.items() if sampler}
        for who, samples in interleaved(able, repeats).items():
            times[who][name] = spread(samples)
    return times
