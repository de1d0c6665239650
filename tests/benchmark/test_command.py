"""The command: what it prints and writes, and how it refuses.

No test asserts how long anything takes.
"""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import torch_softmax
from benchmark_reports import measurement, report, take_small_samples
from torch_softmax.benchmark import __main__ as command
from torch_softmax.benchmark import cuda
from torch_softmax.benchmark.cases import DTYPES
from torch_softmax.benchmark.report import Report
from torch_softmax.benchmark.table import table

TINY = ["--device", "cpu", "--threads", "1", "--repeats", "2"]


@pytest.fixture(autouse=True)
def small_samples(monkeypatch):
    take_small_samples(monkeypatch)


def test_command_measures_and_shows_the_same_from_its_file(tmp_path, capsys):
    file, picture = tmp_path / "report.json", tmp_path / "report.svg"
    again = tmp_path / "again.png"
    threads = torch.get_num_threads()
    flags = [*TINY, "--shapes", "6x5", "2x3x2x2", "--peers", "eager", "--ignored", "0", "0.5"]
    assert command.run([*flags, "--json", str(file), "--plot", str(picture)]) == 0
    measured = capsys.readouterr()
    assert measured.err == ""
    assert "cross_entropy, 1 thread, 50% of the rows ignored" in measured.out
    assert picture.read_text().startswith("<?xml")
    # two of softmax, two of log_softmax, and of cross-entropy 2 and 3, twice; two shapes
    measurements = json.loads(file.read_text())["measurements"]
    assert len(measurements) == 2 * (2 * 2 + 2 * 2 + 2 * (2 + 3))
    assert all(m["times"]["wall"]["minimum"] > 0 for m in measurements)
    assert torch.get_num_threads() == threads
    assert command.run(["--from-json", str(file), "--plot", str(again)]) == 0
    assert capsys.readouterr().out == measured.out
    assert again.read_bytes().startswith(b"\x89PNG")


def test_command_measures_torch_compile(capsys, monkeypatch):
    # what follows the graph takes a C++ compiler 20 s
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    flags = [*TINY, "--shapes", "6x5", "--operator", "softmax", "--mode", "backward"]
    result = command.main([*flags, "--peers", "compile"])
    assert [(m.provider, m.failure) for m in result.measurements] == [
        ("ours", None),
        ("compile", None),
    ]


def test_command_runs_as_a_module(tmp_path):
    file = tmp_path / "report.json"
    report(measurement()).save(file)
    process = subprocess.run(
        [sys.executable, "-m", "torch_softmax.benchmark", "--from-json", file],
        cwd=os.path.dirname(os.path.dirname(torch_softmax.__file__)),
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == table(report(measurement())) + "\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shapes", "8"], "--shapes"),
        (["--shapes", "8x0"], "--shapes"),
        (["--operator", "relu"], "--operator"),
        (["--operator", "cross_entropy", "--mode", "backward"], "--mode"),
        (["--dtype", "int8"], "--dtype"),
        (["--ignored", "1"], "--ignored"),
        (["--threads", "0"], "--threads"),
        (["--repeats", "1"], "--repeats"),
        (["--seed", "-1"], "--seed"),
        (["--peers", "liger"], "--device cuda"),
        (["--peers", "nobody"], "--peers"),
        (["--json", "/no/such/folder/file.json"], "--json"),
        (["--plot", "picture.txt"], "--plot"),
        (["--from-json", "no-such-file.json"], "--from-json"),
        (["--from-json", "file.json", "--seed", "1"], "--seed"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_command_refuses_in_one_line(flags, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.run(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m torch_softmax.benchmark: ")
    assert message in line


def test_command_refuses_the_interpreter(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command.run(TINY) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "flags"), [("tqdm", TINY), ("matplotlib", ["--plot", "a.png"])]
)
def test_command_names_the_package_it_needs(package, flags, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.figure", None)
    assert command.run(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"needs the package {package}: pip install 'torch-softmax[benchmark]'" in line


def test_command_without_the_gpu_it_is_asked_for_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.run(["--device", "cuda"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs a CUDA or ROCm GPU" in line


def test_command_tells_that_an_operator_of_ours_failed(monkeypatch):
    failed = report(measurement(times={}, failure="RuntimeError: no"))
    monkeypatch.setattr(command, "measured", lambda options: failed)
    assert command.run([]) == 1


def test_command_stops_when_interrupted(capsys, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measured", interrupt)
    assert command.run([]) == 130
    assert capsys.readouterr().err == "python -m torch_softmax.benchmark: interrupted\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")
def test_command_measures_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "COPY_ELEMENTS", 2**20)
    file = tmp_path / "report.json"
    flags = ["--device", "cuda", "--shapes", "64x1000", "2x19x8x8", "--peers", "eager", "compile"]
    assert command.run([*flags, "--repeats", "2", "--json", str(file)]) == 0
    measurements = Report.load(file).measurements
    assert all(m.times.keys() == {"graph", "events", "wall"} for m in measurements)
    assert all(m.syncs == 0 for m in measurements)
    peaks = {
        m.provider: m.peak_bytes
        for m in measurements
        if (m.operator, m.mode, m.shape) == ("cross_entropy", "step", (64, 1000))
    }
    assert peaks["ours in place"] < 64 * 1000 * DTYPES["bfloat16"].itemsize
    assert peaks["ours in place"] < peaks["ours"] < peaks["eager"]
