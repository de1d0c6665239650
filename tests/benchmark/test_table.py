"""The table and the picture are functions of the report, and the report of its file."""

from dataclasses import replace

import pytest

from benchmark_reports import measurement, report
from torch_softmax._command_line import UserError
from torch_softmax.benchmark.plot import line_of
from torch_softmax.benchmark.report import Report
from torch_softmax.benchmark.table import table
from torch_softmax.benchmark.timing import Spread


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
