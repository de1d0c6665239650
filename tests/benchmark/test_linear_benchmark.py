"""The command that measures linear cross-entropy; no test asserts how long anything takes."""

import json

import pytest
import torch

from torch_softmax.benchmark import linear, linear_measure
from torch_softmax.benchmark.linear_providers import OURS, LinearProvider, eager, linear_providers

TINY = ["--device", "cpu", "--threads", "1", "--repeats", "2", "--shapes", "12x4x7"]


@pytest.fixture(autouse=True)
def quick_providers(monkeypatch):
    def those_without_a_compiler(device):
        return [provider for provider in linear_providers(device) if provider.name != "compile"]

    monkeypatch.setattr(linear, "linear_providers", those_without_a_compiler)


def test_linear_command_measures_every_provider(tmp_path, capsys):
    file = tmp_path / "linear.json"
    assert linear.run([*TINY, "--json", str(file)]) == 0
    results = json.loads(file.read_text())["results"]
    assert capsys.readouterr().out.count("12x4x7") == len(results)
    assert {result["provider"] for result in results} >= {"ours", "eager"}
    assert not any(result["failure"] for result in results)
    assert all(result["error"] < 1e-5 and result["times"]["median"] > 0 for result in results)


def test_linear_command_tells_of_a_failure_and_measures_the_others(monkeypatch, capsys):
    def failing():
        raise ValueError("no such shape")

    providers = [OURS, LinearProvider("eager", lambda: eager), LinearProvider("other", failing)]
    monkeypatch.setattr(linear, "linear_providers", lambda device: providers)
    assert linear.run([*TINY, "--ignored", "0"]) == 0
    assert "failed: ValueError: no such shape" in capsys.readouterr().out
    monkeypatch.setattr(linear, "linear_providers", lambda device: [OURS._replace(make=failing)])
    assert linear.run([*TINY, "--ignored", "0"]) == 1


@pytest.mark.parametrize(
    "flags", [["--shapes", "12x4"], ["--shapes", "0x1x1"], ["--ignored", "1"], ["--dtype", "int8"]]
)
def test_linear_command_refuses_flags_that_mean_nothing(flags, capsys):
    assert linear.run(flags) == 2
    assert "needs" in capsys.readouterr().err or flags[0] == "--dtype"


def test_linear_truth_is_the_gradient_in_float64(monkeypatch):
    monkeypatch.setattr(linear_measure, "BLOCK_ROWS", 5)
    case = linear_measure.LinearCase(12, 4, 7, "bfloat16", 0.5)
    head = linear_measure.make_head(case, "cpu", 0)
    x, weight = head.x.detach().double(), head.weight.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(eager(x, weight, head.target), weight)
    torch.testing.assert_close(linear_measure.exact_weight_gradient(head), expected)
