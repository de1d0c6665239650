"""Providers compute the same, and who does not is not measured."""

import pytest
import torch
import torch.nn.functional as F

from benchmark_reports import report, take_small_samples
from torch_softmax.benchmark import cpu, providers
from torch_softmax.benchmark.cases import OPERATORS, Case
from torch_softmax.benchmark.measure import clock, measure
from torch_softmax.benchmark.plot import STYLES
from torch_softmax.benchmark.providers import OWN, PEERS, Provider, providers_of
from torch_softmax.benchmark.table import table
from torch_softmax.benchmark.workload import Workload, make_inputs


@pytest.fixture(autouse=True)
def small_samples(monkeypatch):
    take_small_samples(monkeypatch)


def run_once(case, provider):
    """The result of a provider, and the inputs it was given."""
    inputs = make_inputs(case, 1, "cpu", seed=0)
    work = Workload(case, provider, provider.make(case), inputs)
    return work.run(work.prepare()), inputs[0]


@pytest.mark.parametrize("shape", [(5, 7), (2, 7, 3, 4)])
@pytest.mark.parametrize(
    ("operator", "mode"), [(name, mode) for name in OPERATORS for mode in OPERATORS[name].modes]
)
def test_providers_compute_the_same(operator, mode, shape):
    case = Case(operator, mode, shape, "float32", ignored=0.3 * OPERATORS[operator].has_target)
    expected, inputs = run_once(case, PEERS["eager"][0])
    others = [provider for provider in OWN if provider.make(case)]
    for provider in others:
        actual, given = run_once(case, provider)
        torch.testing.assert_close(actual, expected)
        assert torch.equal(given.x, inputs.x), f"{provider.name} was not given logits of its own"
    assert len(others) == 1 + (mode == "step" and operator == "cross_entropy")


def test_providers_of_matrices_take_any_shape():
    x, target = torch.randn(2, 7, 3, 4), torch.randint(7, (2, 3, 4))
    softmax = providers._on_rows(lambda x: F.softmax(x, 1))
    torch.testing.assert_close(softmax(x), F.softmax(x, 1))
    cross_entropy = providers._on_rows(F.cross_entropy)
    torch.testing.assert_close(cross_entropy(x, target), F.cross_entropy(x, target))


def test_providers_default_to_what_is_installed():
    assert {"ours", "ours in place", "eager", "compile"} == {
        provider.name for provider in providers_of(None, "cpu")
    }


def test_providers_have_a_style_each():
    names = [provider.name for group in (OWN, *PEERS.values()) for provider in group]
    assert sorted(names) == sorted(STYLES)
    assert len({style[:2] for style in STYLES.values()}) == len(STYLES)


def test_a_provider_that_fails_leaves_the_others_measured():
    def refuse(case):
        raise NotImplementedError(f"no {case.operator}\nat all")

    case = Case("softmax", "forward", (4, 3), "float32")
    measured = measure(
        case,
        cpu.Cpu(1),
        [OWN[0], Provider("eager", refuse)],
        copy_bandwidth=1e9,
        repeats=2,
        seed=0,
    )
    assert [m.provider for m in measured] == ["ours", "eager"]
    assert measured[0].times
    assert measured[1].failure == "NotImplementedError: no softmax"
    assert "failed: NotImplementedError" in table(report(*measured))


@pytest.mark.parametrize(
    "wrong", [lambda x: F.softmax(x, 0), lambda x: x.new_full(x.shape, torch.nan)]
)
def test_a_provider_that_computes_something_else_is_not_measured(wrong):
    case = Case("softmax", "forward", (40, 30), "float32")
    measured = measure(
        case,
        cpu.Cpu(1),
        [Provider("quack", lambda case: wrong), *PEERS["eager"]],
        copy_bandwidth=1e9,
        repeats=2,
        seed=0,
    )
    assert "not what PyTorch computes" in measured[0].failure
    assert not measured[0].times
    assert measured[1].times


def test_providers_are_judged_by_what_float32_says(monkeypatch):
    # as PyTorch's mean over millions of rows of bfloat16 is on a GPU
    def off_in_bfloat16(x, target):
        return F.cross_entropy(x, target) * (0.9 if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setitem(providers.EAGER, "cross_entropy", off_in_bfloat16)
    case = Case("cross_entropy", "forward", (40, 30), "bfloat16")
    measured = measure(
        case, cpu.Cpu(1), [OWN[0], *PEERS["eager"]], copy_bandwidth=1e9, repeats=2, seed=0
    )
    assert measured[0].times
    assert "not what PyTorch computes" in measured[1].failure


def test_a_clock_that_cannot_tell_is_left_out():
    machine = cpu.Cpu(1)
    case = Case("softmax", "forward", (4, 3), "float32")
    work = Workload(case, OWN[0], OWN[0].make(case), make_inputs(case, 1, "cpu", 0))
    machine.clocks = {"graph": lambda work: None, "wall": machine.wall_sampler}
    assert clock(machine, [work], 2)["ours"].keys() == {"wall"}
