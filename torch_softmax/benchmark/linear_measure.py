"""Steps of linear cross-entropy on one case, in balanced order: time, memory, and error."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_softmax.benchmark.cases import DTYPES
from torch_softmax.benchmark.linear_providers import LinearProvider
from torch_softmax.benchmark.measure import Machine
from torch_softmax.benchmark.timing import Spread, interleaved, spread

IGNORE_INDEX = -100
# of which PyTorch's product of matrices gives the rate of the machine, and the exact loss is made
BLOCK_ROWS = 512
# timed for that rate, of which the best counts
PRODUCTS = 10


class LinearCase(NamedTuple):
    """Rows, features and classes of a head, and the fraction of its rows that is ignored."""

    n_rows: int
    n_features: int
    n_classes: int
    dtype: str
    ignored: float


@dataclass(frozen=True)
class LinearResult:
    """What one provider took for one case, or why it failed."""

    case: LinearCase
    provider: str
    failure: str | None = None
    times: Spread | None = None
    share_of_products: float | None = None
    peak_bytes: int | None = None
    error: float | None = None


class Head(NamedTuple):
    """The inputs of a step."""

    x: Tensor
    weight: Tensor
    target: Tensor

    @property
    def counted(self) -> int:
        """Rows that are not ignored."""
        return int((self.target != IGNORE_INDEX).sum())


def make_head(case: LinearCase, device: str, seed: int) -> Head:
    """Random inputs whose logits have a variance of 1."""
    generator = torch.Generator(device).manual_seed(seed)
    shapes = ((case.n_rows, case.n_features), (case.n_classes, case.n_features))
    x, weight = (torch.randn(shape, generator=generator, device=device) for shape in shapes)
    rows = (case.n_rows,)
    target = torch.randint(case.n_classes, rows, generator=generator, device=device)
    is_ignored = torch.rand(rows, generator=generator, device=device) < case.ignored
    x, weight = (y.to(DTYPES[case.dtype]) for y in (x, weight / case.n_features**0.5))
    target = target.masked_fill(is_ignored, IGNORE_INDEX)
    return Head(x.requires_grad_(), weight.requires_grad_(), target)


def exact_weight_gradient(head: Head) -> Tensor:
    """In float64, by PyTorch, from some rows at a time."""
    weight = head.weight.detach().double().requires_grad_()
    for x, target in zip(head.x.split(BLOCK_ROWS), head.target.split(BLOCK_ROWS), strict=True):
        logits = F.linear(x.detach().double(), weight)
        (F.cross_entropy(logits, target, reduction="sum") / head.counted).backward()
    assert weight.grad is not None
    return weight.grad


def product_rate(head: Head, synchronize: Callable[[], None], repeats: int) -> float:
    """Operations a second of the product that gives logits."""
    x, weight = head.x.detach()[:BLOCK_ROWS], head.weight.detach().t()
    out = torch.mm(x, weight)
    multiply = partial(torch.mm, x, weight, out=out)
    samples = [timed(multiply, synchronize) for _ in range(max(repeats, PRODUCTS))]
    return 2 * out.numel() * x.shape[1] / min(samples)


def timed(step: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Seconds until the device is done."""
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def measure_linear(
    case: LinearCase,
    machine: Machine,
    providers: Sequence[LinearProvider],
    repeats: int,
    seed: int,
) -> list[LinearResult]:
    """All providers on one case, interleaved."""
    head = make_head(case, machine.device, seed)
    exact = exact_weight_gradient(head)
    rate = product_rate(head, machine.synchronize, repeats)
    steps: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    results: dict[str, LinearResult] = {}
    for provider in providers:
        try:
            step = partial(step_of, provider.make(), head)
            _, dweight = step()
            error = (dweight.double() - exact).norm() / exact.norm()
            del dweight
            gradients = head.x.nbytes + head.weight.nbytes
            peak = machine.peak_bytes(step) - gradients
        # whatever a peer raises: the others are measured all the same
        except Exception as failure:
            words = f"{type(failure).__name__}: {failure}".splitlines()[0]
            results[provider.name] = LinearResult(case, provider.name, words)
            continue
        steps[provider.name] = step
        results[provider.name] = LinearResult(
            case, provider.name, peak_bytes=peak, error=error.item()
        )
    samplers = {name: partial(timed, step, machine.synchronize) for name, step in steps.items()}
    floor = 6 * head.counted * case.n_features * case.n_classes / rate
    for name, samples in interleaved(samplers, repeats).items():
        times = spread(samples)
        told = vars(results[name]) | {"times": times, "share_of_products": floor / times.median}
        results[name] = LinearResult(**told)
    return list(results.values())


def step_of(function: Callable[..., Tensor], head: Head) -> tuple[Tensor, ...]:
    """The gradients of features and weight."""
    return torch.autograd.grad(function(*head), (head.x, head.weight))
