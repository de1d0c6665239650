"""Targets of every integer type, and invalid targets."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from devices import with_and_without_compiler
from numerics import value_and_gradients
from operator_pairs import some_classes
from pairwise import pairwise


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
@with_and_without_compiler
def test_break_18_every_integer_target_is_as_good_as_int64(dtype, device):
    logits = torch.randn(5, 10, device=device)
    target = torch.tensor([1, 9, 0, 3, 3], device=device)
    expected = value_and_gradients(F.cross_entropy, logits, target)
    # -100 would wrap to 156 in uint8, and 2**40 to 0 in int32: an ignore_index must not wrap
    for ignore_index in (-100, 2**40, -253):
        actual = value_and_gradients(
            torch_softmax.cross_entropy, logits, target.to(dtype), ignore_index=ignore_index
        )
        torch.testing.assert_close(actual, expected)


def test_break_18_int32_targets_ignore_rows_as_int64_does(device):
    logits = torch.randn(5, 10, dtype=torch.double, device=device)
    target = some_classes(logits)
    target[1] = -100
    for options in ({}, {"label_smoothing": 0.1, "reduction": "none"}):
        torch.testing.assert_close(
            value_and_gradients(torch_softmax.cross_entropy, logits, target.int(), **options),
            value_and_gradients(F.cross_entropy, logits, target, **options),
        )


@pytest.mark.parametrize("target", [[0, 10], [-1, 3]])
def test_cross_entropy_refuses_an_invalid_target(target):
    with pytest.raises(IndexError, match=r"target in \[0, 10\) or equal to ignore_index, got"):
        torch_softmax.cross_entropy(torch.randn(2, 10), torch.tensor(target))


# just outside the classes, outside the row, outside all rows, and outside int32
@pytest.mark.parametrize(
    ("bad", "reduction", "weighted"),
    pairwise([10, -1, 100, 2**31, -(2**62)], ["none", "mean"], [False, True]),
)
def test_break_15_an_invalid_target_never_reads_another_row(
    bad, reduction, weighted, kernel_device
):
    logits = torch.randn(4, 10, device=kernel_device)
    target = torch.tensor([1, 2, 3, 4], device=kernel_device)
    options = {"reduction": reduction}
    if weighted:
        options |= {"weight": torch.rand(10, device=kernel_device), "label_smoothing": 0.1}
    expected = value_and_gradients(torch_softmax.cross_entropy, logits, target, **options)
    target[1] = bad
    loss, dlogits = value_and_gradients(torch_softmax.cross_entropy, logits, target, **options)
    others = [0, 2, 3]
    if reduction == "none":
        assert torch.equal(loss[others], expected[0][others])
        assert torch.equal(dlogits[others], expected[1][others])
        loss = loss[1]
    assert loss.isnan()
    assert dlogits[1].isnan().all()


def test_issue_an_invalid_target_is_not_ignored():
    """Pytorch 12670: -4 beside ignore_index=-1 gave a loss that changed from run to run."""
    with pytest.raises(IndexError, match="got -4"):
        torch_softmax.cross_entropy(
            torch.randn(3, 5), torch.tensor([2, 1, -4]), ignore_index=-1, reduction="none"
        )


def test_issue_kernels_do_not_ignore_an_invalid_target(kernel_device):
    """Pytorch 12670, where raising would have to wait for the device."""
    logits = torch.randn(3, 5, device=kernel_device)
    target = torch.tensor([2, -1, -4], device=kernel_device)
    loss = torch_softmax.cross_entropy(logits, target, ignore_index=-1, reduction="none")
    assert loss.isnan().tolist() == [False, False, True]
    assert loss[1] == 0
