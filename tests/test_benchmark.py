"""The benchmark: it counts, orders and sums up as it says, and its table is a function of its file.

No test asserts how long anything takes.
"""

import gc
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from torch_softmax._command_line import UserError
from torch_softmax.benchmark import __main__ as command
from torch_softmax.benchmark import cpu, cuda, providers
from torch_softmax.benchmark.cases import DTYPES, OPERATORS, Case, cases_of, shapes_of
from torch_softmax.benchmark.measure import clock, measure
from torch_softmax.benchmark.memory import peak_bytes_on_cpu
from torch_softmax.benchmark.plot import STYLES, line_of
from torch_softmax.benchmark.providers import OWN, PEERS, Provider, providers_of
from torch_softmax.benchmark.report import Measurement, Report
from torch_softmax.benchmark.table import table
from torch_softmax.benchmark.timing import Spread, balanced_rounds, interleaved, spread
from torch_softmax.benchmark.workload import IGNORE_INDEX, Workload, make_inputs

TINY = ["--device", "cpu", "--threads", "1", "--repeats", "2"]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    """A command that takes few and small samples, in an environment that says nothing."""
    monkeypatch.setattr(cpu, "COPY_ELEMENTS", 2**16)
    monkeypatch.setattr(cpu, "MAX_SETS", 2)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def measurement(provider="ours", milliseconds=2.0, **changes):
    """A step on 1000 x 1000 float32, whose floor is 8 MB, beside a copy of 8 GB/s."""
    seconds = milliseconds / 1e3
    facts = {
        "operator": "cross_entropy",
        "mode": "step",
        "shape": (1000, 1000),
        "dtype": "float32",
        "ignored": 0.0,
        "threads": 2,
        "floor_bytes": 8_000_000,
        "copy_bandwidth": 8e9,
        "times": {"wall": Spread(seconds, 0.9 * seconds, 1.2 * seconds, 0.8 * seconds)},
        "first_call": 0.25,
        "peak_bytes": 4_000_000,
    }
    return Measurement(provider=provider, **facts | changes)


def report(*measurements):
    return Report({"device": "Some CPU", "torch": "2.15.0"}, "do it", {"seed": 0}, [*measurements])


# the table of floors, in passes over the matrix
@pytest.mark.parametrize(
    ("operator", "mode", "passes"),
    [
        ("softmax", "forward", 2),
        ("softmax", "backward", 3),
        ("softmax", "step", 5),
        ("log_softmax", "forward", 2),
        ("log_softmax", "backward", 3),
        ("log_softmax", "step", 5),
        ("cross_entropy", "forward", 1),
        ("cross_entropy", "step", 2),
    ],
)
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float64", 8)])
def test_floor_is_the_bytes_that_must_move(operator, mode, passes, dtype, size):
    assert Case(operator, mode, (3, 5, 7), dtype).floor_bytes == passes * 3 * 5 * 7 * size


def test_floor_of_a_large_step_is_the_published_one():
    step = Case("cross_entropy", "step", (8192, 32_000), "bfloat16")
    assert step.floor_bytes / 4.3e12 == pytest.approx(0.244e-3, rel=1e-3)


@pytest.mark.parametrize("n", range(1, 9))
def test_order_gives_everybody_each_place_as_often(n):
    rounds = balanced_rounds(n)
    places = Counter((place, who) for order in rounds for place, who in enumerate(order))
    assert len(places) == n * n
    assert set(places.values()) == {len(rounds) // n}


@pytest.mark.parametrize("n", range(2, 9))
def test_order_lets_everybody_follow_everybody_as_often(n):
    follows = Counter(pair for order in balanced_rounds(n) for pair in itertools.pairwise(order))
    assert len(follows) == n * (n - 1)
    assert len(set(follows.values())) == 1


@pytest.mark.parametrize(("repeats", "taken"), [(1, 6), (6, 6), (7, 12)])
def test_order_is_kept_in_whole_rounds(repeats, taken):
    calls = []

    def sampler(name):
        return lambda: calls.append(name) or len(calls)

    samples = interleaved({name: sampler(name) for name in "abc"}, repeats)
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", taken)
    assert calls[:18] == ["abc"[who] for order in balanced_rounds(3) for who in order]
    assert all(calls[value - 1] == name for name in "abc" for value in samples[name])
    assert gc.isenabled()


def test_order_of_nobody_is_empty():
    assert interleaved({}, 5) == {}


def test_spread_of_known_samples():
    samples = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 11.0, 10.0]
    assert spread(samples) == Spread(median=6.0, p20=3.0, p80=9.0, minimum=1.0)
    assert spread([1.0, 2.0]) == Spread(median=1.5, p20=1.2, p80=pytest.approx(1.8), minimum=1.0)


def test_shapes_are_names_or_sizes():
    assert shapes_of(["small", "8x10", "2x21x4x4", "8x10"], "cpu") == [
        (128, 10),
        (1024, 10),
        (60_000, 10),
        (8, 10),
        (2, 21, 4, 4),
    ]
    assert set(shapes_of(["all"], "cpu")) < set(shapes_of(["all"], "cuda"))


def test_shapes_sweep_the_classes_on_a_gpu():
    assert {2**power for power in range(10, 19)} < {c for _, c in shapes_of(["llm"], "cuda")}


def test_cases_are_those_with_a_meaning():
    cases = cases_of(OPERATORS, None, [(4, 3)], ["float32"], [0.0, 0.1])
    assert [(case.operator, case.mode, case.ignored) for case in cases] == [
        ("softmax", "forward", 0.0),
        ("softmax", "backward", 0.0),
        ("log_softmax", "forward", 0.0),
        ("log_softmax", "backward", 0.0),
        ("cross_entropy", "forward", 0.0),
        ("cross_entropy", "step", 0.0),
        ("cross_entropy", "forward", 0.1),
        ("cross_entropy", "step", 0.1),
    ]


def test_inputs_follow_the_seed_and_ignore_the_share():
    case = Case("cross_entropy", "step", (4000, 3), "float32", ignored=0.1)
    first, second = make_inputs(case, 2, "cpu", seed=1)
    (again,) = make_inputs(case, 1, "cpu", seed=1)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.x, second.x)
    assert (first.target == IGNORE_INDEX).float().mean() == pytest.approx(0.1, abs=0.03)


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


N_ROWS, N_CLASSES = 1024, 1000
MATRIX_BYTES = 4 * N_ROWS * N_CLASSES


def peak_of(operator, mode, provider):
    case = Case(operator, mode, (N_ROWS, N_CLASSES), "float32")
    work = Workload(case, provider, provider.make(case), make_inputs(case, 1, "cpu", 0))
    work.run(work.prepare())
    prepared = work.prepare()
    return peak_bytes_on_cpu(lambda: work.run(prepared))


def test_peak_counts_what_lives_at_once():
    assert peak_bytes_on_cpu(lambda: None) == 0
    assert peak_bytes_on_cpu(lambda: torch.empty(1000)) == 4000
    assert peak_bytes_on_cpu(lambda: [torch.empty(1000) for _ in range(3)]) == 12_000
    assert peak_bytes_on_cpu(lambda: [torch.empty(1000).numel() for _ in range(3)]) == 4000


# eager's step holds log-probabilities, their gradient and the gradient of the logits
@pytest.mark.parametrize(
    ("operator", "mode", "matrices"),
    [
        ("softmax", "forward", 1),
        ("softmax", "backward", 1),
        ("softmax", "step", 2),
        ("cross_entropy", "forward", 1),
        ("cross_entropy", "step", 3),
    ],
)
def test_peak_of_eager_is_the_known_number_of_matrices(operator, mode, matrices):
    peak = peak_of(operator, mode, PEERS["eager"][0])
    assert peak == pytest.approx(matrices * MATRIX_BYTES, rel=0.01)


def test_peak_sees_what_our_operators_allocate():
    ours, in_place = (peak_of("cross_entropy", "step", provider) for provider in OWN)
    assert ours > MATRIX_BYTES
    assert ours - in_place == pytest.approx(MATRIX_BYTES, rel=0.01)


def test_report_survives_its_file(tmp_path):
    path = tmp_path / "report.json"
    failed = measurement("compile", times={}, failure="RuntimeError: no")
    before = report(measurement(), failed)
    before.save(path)
    assert Report.load(path) == before
    assert table(Report.load(path)) == table(before)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measurements": [{"shape": [1]}]}'])
def test_report_refuses_another_file(text, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match="a file that --json wrote"):
        Report.load(path)


def test_table_tells_what_was_measured():
    lines = table(report(measurement("ours", 2), measurement("eager", 9))).splitlines()
    assert lines[:3] == ["device Some CPU, torch 2.15.0", "do it", "seed 0"]
    title, head, ours, eager, first_calls = lines[-5:]
    assert title == "cross_entropy, 2 threads, copy 8.0 GB/s"
    assert " ".join(head.split()) == "shape dtype mode provider ms GB/s copy eager ours peak MB"
    # 8 MB in 2 ms are 4 GB/s, half of the copy's
    assert " ".join(ours.split()) == "1000x1000 float32 step ours 2.00 4.0 50% 4.50 1.00 4.0"
    assert " ".join(eager.split()) == "eager 9.00 0.9 11% 1.00 4.50 4.0"
    assert first_calls == "slowest first call, s: ours 0.250, eager 0.250"


def test_table_of_a_gpu_tells_wall_time_and_who_waits():
    times = {name: Spread(t, t, t, t) for name, t in [("graph", 1e-3), ("wall", 2e-3)]}
    events = {"events": times["graph"], "wall": times["wall"]}
    facts = {"threads": None, "times": times | events, "copy_bandwidth": 4.3e12}
    text = table(
        report(
            measurement("ours", **facts, syncs=0),
            measurement("liger", **facts | {"times": events}, syncs=4),
        )
    )
    assert "cross_entropy, copy 4300 GB/s" in text
    assert "ours               1.00    2.00" in text
    assert "waits for the GPU per call: liger 4" in text
    assert "in no CUDA graph, so timed with launches: liger" in text


def test_table_fits_100_columns():
    widest = measurement(
        "quack in place", 99_999, shape=(16, 19, 512, 1024), dtype="bfloat16", mode="backward"
    )
    tiny = replace(widest, provider="eager", times={"wall": Spread(1e-8, 1e-8, 1e-8, 1e-8)})
    failed = replace(widest, provider="liger", times={}, failure="RuntimeError: " + "why " * 50)
    told = report(widest, tiny, failed)
    told.command = "python -m torch_softmax.benchmark " + "--shapes 8x10 " * 20
    assert max(map(len, table(told).splitlines())) <= 100


def test_plot_draws_the_largest_of_shapes_with_as_many_classes():
    small = measurement(milliseconds=4, shape=(10, 10), floor_bytes=800)
    large = measurement(milliseconds=2, shape=(1000, 10))
    wide = measurement(milliseconds=1)
    assert line_of([wide, large, small]) == [(10, 0.5), (1000, 1.0)]


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


def test_command_measures_torch_compile(capsys):
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
