"""The suite: every measurement of the README from one command."""

import json

import pytest

from benchmark_reports import take_small_samples
from torch_softmax.benchmark import __main__ as operators
from torch_softmax.benchmark import linear, suite
from torch_softmax.benchmark.cases import shapes_of

TINY = "--device cpu --threads 1 --repeats 2"


@pytest.mark.parametrize("device", suite.PARTS)
def test_suite_passes_arguments_that_the_commands_take(device):
    for part in suite.PARTS[device].values():
        command = operators if part.run is operators.run else linear
        options = command.parse(part.arguments.split())
        assert options.device == device
        if command is operators:
            shapes_of(options.shapes or ["all"], device)


def test_suite_writes_a_file_for_each_part(tmp_path, monkeypatch, capsys):
    take_small_samples(monkeypatch)
    losses = f"{TINY} --operator cross_entropy --shapes 6x5 --peers eager"
    parts = {
        "losses": suite.Part(operators.run, losses, has_plot=True),
        "linear": suite.Part(linear.run, f"{TINY} --shapes 8x4x6"),
    }
    monkeypatch.setitem(suite.PARTS, "cpu", parts)
    assert suite.run(["--device", "cpu", "--out", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cpu-losses.json", "cpu-losses.png", "cpu-linear.json"}
    assert json.loads((tmp_path / "cpu-losses.json").read_text())
    assert "linear: exit code 0 after" in capsys.readouterr().out


def test_suite_goes_on_after_a_part_that_fails(tmp_path, monkeypatch):
    ran = []

    def part(name, code):
        return suite.Part(lambda arguments: ran.append(name) or code, "")

    monkeypatch.setitem(
        suite.PARTS, "cpu", {"first": part("first", 1), "second": part("second", 0)}
    )
    assert suite.run(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert ran == ["first", "second"]


def test_suite_needs_a_folder_that_exists(tmp_path, capsys):
    assert suite.run(["--out", str(tmp_path / "missing")]) == 2
    assert "--out: needs a folder that exists" in capsys.readouterr().err
