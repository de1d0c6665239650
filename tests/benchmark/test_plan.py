"""The plan for many GPUs: its model agrees with what the losses communicate."""

import pytest
import torch

import torch_softmax.distributed.shard_operators  # noqa: F401
from benchmark_reports import measurement, report
from torch_softmax.benchmark import __main__ as command
from torch_softmax.benchmark.plan import (
    BYTES_PER_ROW,
    DEFAULT_FILE,
    GPUS,
    ROWS,
    Rates,
    plan,
    plan_table,
    plans,
    rates_of,
)
from torch_softmax.benchmark.report import Report

RATES = Rates(forward=4e12, step=3e12)


def test_plan_prints_a_line_for_each_number_of_gpus(capsys):
    assert command.run(["--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Measured on NVIDIA H200: 3.88 TB/s for the loss, 3.01 TB/s with its gradient." in lines
    assert {line.split(" | ")[0] for line in lines[6:]} == {f"| {gpus:,}" for gpus in GPUS}


def test_plan_counts_the_bytes_that_a_rank_sends_for_a_row():
    x, target = torch.randn(8, 5).bfloat16(), torch.zeros(8, dtype=torch.long)
    forward = torch.ops.torch_softmax.vocab_shard_forward
    packed = [forward(x[:n], target[:n], None, 0, False, False, 1.0, None) for n in (4, 8)]
    sent = [y.numel() * y.element_size() for y in packed]
    assert (sent[1] - sent[0]) / 4 == BYTES_PER_ROW


def test_plan_of_one_gpu_needs_no_links():
    alone = plan(1, 1, RATES)
    assert alone.link_seconds == alone.gathered == alone.input_gradient == 0
    assert alone.loss_seconds == pytest.approx(alone.logits * (1 / 4e12 + 2 / 3e12))


def test_plan_divides_memory_by_the_ranks_that_share_the_classes():
    for gpus in GPUS:
        row = plan(gpus, 1, RATES)
        assert row.logits * gpus == plan(1, 1, RATES).logits
        assert row.weight * gpus == plan(1, 1, RATES).weight
        assert row.gathered == (gpus - 1) * ROWS * BYTES_PER_ROW


def test_plan_shares_the_classes_of_many_nodes_within_each():
    rows = {(row.class_ranks, row.row_ranks): row for row in plans(RATES)}
    # the gather from a thousand ranks takes longer than the loss; rows over nodes avoid it
    assert rows[1024, 1].gathered > rows[1024, 1].logits
    assert rows[8, 128].gathered == rows[8, 1].gathered
    assert rows[8, 128].weight_gradient > 0


def test_plan_takes_the_rates_of_the_largest_logits():
    file = Report.load(DEFAULT_FILE)
    largest = max(
        (m for m in file.measurements if m.provider == "ours" and m.mode == "step"),
        key=lambda m: m.shape[0] * m.shape[1],
    )
    assert rates_of(file).step == largest.bandwidth


def test_plan_needs_both_rates():
    with pytest.raises(command.UserError, match="needs a file with forward and step"):
        plan_table(report(measurement(operator="softmax")))


@pytest.mark.parametrize("flags", [["--device", "cpu"], ["--plot", "plan.png"]])
def test_plan_refuses_flags_of_a_measurement(flags, capsys):
    assert command.run(["--plan", *flags]) == 2
    assert "argument --plan:" in capsys.readouterr().err
