"""Ignored rows: extreme logits in them, their loss and gradient, batches of ignored rows only."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from devices import with_and_without_compiler
from numerics import value_and_gradients
from operator_pairs import assert_cross_entropy_agrees, some_classes
from pairwise import pairwise

INF, NAN = torch.inf, torch.nan
REDUCTIONS = ["mean", "sum", "none"]
OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.1},
    "softcap": {"softcap": 5.0},
    "weighted": {},
    "weighted and smoothed": {"label_smoothing": 0.1},
}


def test_cross_entropy_ignores_a_class_by_its_index(device):
    logits = torch.randn(8, 4, device=device)
    target = torch.arange(8, device=device) % 4
    assert_cross_entropy_agrees(logits, target, ignore_index=2)
    assert_cross_entropy_agrees(logits, target, torch.rand(4, device=device), ignore_index=2)


# few classes, one block per row, several blocks per row
@pytest.mark.parametrize(
    ("name", "fill", "n_classes"), pairwise([*OPTIONS], [NAN, INF, -INF], [3, 1000, 20_011])
)
@with_and_without_compiler
def test_cross_entropy_ignores_a_row_whatever_its_logits(name, fill, n_classes, device):
    logits = torch.randn(3, n_classes, device=device)
    target = torch.tensor([0, -100, 2], device=device)
    options = dict(OPTIONS[name])
    if name.startswith("weighted"):
        options["weight"] = torch.rand(n_classes, device=device)
    for reduction in ("mean", "none"):
        options["reduction"] = reduction
        expected = value_and_gradients(torch_softmax.cross_entropy, logits, target, **options)
        filled = logits.clone()
        filled[1] = fill
        actual = value_and_gradients(torch_softmax.cross_entropy, filled, target, **options)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert (actual[1][1] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("fill", [NAN, INF, -INF])
def test_class_weights_have_no_gradient_from_an_ignored_row(
    reduction, label_smoothing, fill, device
):
    weight = torch.rand(5, device=device, requires_grad=True)
    target = torch.tensor([0, -100, 2], device=device)
    logits = torch.randn(3, 5, device=device)
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    expected = value_and_gradients(torch_softmax.cross_entropy, logits, target, weight, **options)
    logits[1] = fill
    actual = value_and_gradients(torch_softmax.cross_entropy, logits, target, weight, **options)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("grad_enabled", [False, True])
def test_break_04_logits_of_ignored_rows_are_not_written(grad_enabled, device):
    logits = torch.randn(4, 10, device=device)
    before = logits.clone()
    target = torch.tensor([1, -100, -100, 2], device=device)
    with torch.set_grad_enabled(grad_enabled):
        torch_softmax.cross_entropy(logits.requires_grad_(), target)
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize(
    ("n_rows", "weighted", "options", "reduction"),
    pairwise([0, 5], [False, True], [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], REDUCTIONS),
)
@with_and_without_compiler
def test_break_14_no_counted_row_is_as_in_torch(n_rows, weighted, options, reduction, device):
    logits = torch.randn(n_rows, 10, dtype=torch.double, device=device)
    target = torch.full((n_rows,), -100, device=device)
    weight = torch.rand(10, dtype=torch.double, device=device) if weighted else None
    loss = {"mean": torch.tensor(NAN), "sum": torch.tensor(0.0), "none": torch.zeros(n_rows)}
    expected = (loss[reduction].to(logits), torch.zeros_like(logits))
    options = options | {"reduction": reduction}
    actual = value_and_gradients(torch_softmax.cross_entropy, logits, target, weight, **options)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    stats = torch_softmax.cross_entropy_with_stats(logits, target, weight, **options)
    torch.testing.assert_close(stats.loss, expected[0], equal_nan=True)
    assert stats.lse.shape == stats.entropy.shape == stats.prediction.shape == (n_rows,)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_of_an_empty_batch_is_as_in_torch(shape, reduction, device):
    logits = torch.randn(shape, device=device)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long, device=device)
    assert_cross_entropy_agrees(logits, target, reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("ignore_index", [-100, 10, 2**31, -(2**62)])
def test_break_15_ignore_index_is_never_an_index(ignore_index, device):
    logits = torch.randn(6, 10, dtype=torch.double, device=device)
    target = some_classes(logits)
    weight = torch.rand_like(logits[0])
    kept = [0, 2, 3, 5]
    expected = value_and_gradients(F.cross_entropy, logits[kept], target[kept], weight)
    target[[1, 4]] = ignore_index
    loss, dlogits = value_and_gradients(
        torch_softmax.cross_entropy, logits, target, weight, ignore_index=ignore_index
    )
    torch.testing.assert_close((loss, dlogits[kept]), expected)
    assert (dlogits[[1, 4]] == 0).all()


@pytest.mark.parametrize(
    ("reduction", "ignore_index", "weighted"), pairwise(REDUCTIONS, [-100, -1, 255], [False, True])
)
@with_and_without_compiler
def test_issue_smoothing_and_weights_leave_ignored_rows_out(
    weighted, ignore_index, reduction, device
):
    """Pytorch 69339, 72056, 91383: weight[ignore_index] was read; 73205: ignored rows smoothed."""
    logits = torch.randn(6, 3, dtype=torch.double, device=device)
    target = some_classes(logits)
    options = {
        "weight": torch.tensor([0.2, 0.3, 16.0]).to(logits) if weighted else None,
        "label_smoothing": 0.1,
        "reduction": reduction,
    }
    target[3:] = ignore_index
    loss, dlogits = value_and_gradients(
        torch_softmax.cross_entropy, logits, target, ignore_index=ignore_index, **options
    )
    expected = value_and_gradients(F.cross_entropy, logits[:3], target[:3], **options)
    loss = loss[:3] if reduction == "none" else loss
    torch.testing.assert_close((loss, dlogits[:3]), expected)
    assert (dlogits[3:] == 0).all()


def test_issue_ignoring_a_class_leaves_its_logits_in_the_softmax(device):
    """Pytorch 63004: ignore_index takes out the rows of a class, not its column."""
    logits = torch.randn(4, 3, device=device)
    target = torch.tensor([1, 0, 2, 0], device=device)
    assert_cross_entropy_agrees(logits, target, ignore_index=0)
    _, dlogits = value_and_gradients(
        torch_softmax.cross_entropy, logits, target, ignore_index=0, reduction="sum"
    )
    torch.testing.assert_close(dlogits[[0, 2], 0], logits.softmax(1)[[0, 2], 0])
    assert (dlogits[[1, 3]] == 0).all()


def test_issue_an_ignored_batch_leaves_the_parameters_finite(device):
    """Pytorch 116349: the mean of no row is NaN, and training goes on all the same."""
    layer = torch.nn.Linear(4, 3).to(device)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    target = torch.full((5,), -100, device=device)
    logits = layer(torch.randn(5, 4, device=device))
    assert torch_softmax.cross_entropy(logits, target, reduction="none").tolist() == [0] * 5
    loss = torch_softmax.cross_entropy(logits, target)
    loss.backward()
    optimizer.step()
    assert loss.isnan()
    assert torch.equal(layer.weight.detach(), before)
