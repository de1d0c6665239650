"""Infinities, NaN and large values in logits, probabilities and weights."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from devices import with_and_without_compiler
from numerics import assert_agrees, value_and_gradients
from operator_pairs import assert_cross_entropy_agrees, each_operator

INF, NAN = torch.inf, torch.nan


@each_operator
def test_break_02_leading_blocks_of_minus_infinity_are_not_nan(
    ours, theirs, kernel_device, launches
):
    logits = torch.randn(2, 20_011, device=kernel_device)
    logits[:, :16_384] = -INF
    logits[1, :-1] = -INF
    assert_agrees(ours, theirs, logits)
    assert max(constants.get("BLOCK_COLS", 0) for _, constants in launches) <= 16_384


@pytest.mark.parametrize("level", [-104.5, -3e38])
@each_operator
@with_and_without_compiler
def test_break_03_logits_far_below_zero_are_not_infinite(ours, theirs, level, device):
    assert_agrees(ours, theirs, level + torch.randn(3, 10, device=device))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@with_and_without_compiler
def test_break_12_probability_0_at_logit_minus_infinity_costs_nothing(reduction, weighted, device):
    logits = torch.randn(4, 12, dtype=torch.double, device=device)
    target = torch.rand_like(logits)
    weight = torch.rand_like(logits[0]) if weighted else None
    possible = torch.arange(12, device=device) % 3 != 1
    logits[:, ~possible] = -INF
    target[:, ~possible] = 0
    actual = value_and_gradients(
        torch_softmax.cross_entropy, logits, target, weight, reduction=reduction
    )
    expected = value_and_gradients(
        F.cross_entropy,
        logits[:, possible],
        target[:, possible],
        weight[possible] if weighted else None,
        reduction=reduction,
    )
    torch.testing.assert_close((actual[0], actual[1][:, possible]), expected)
    assert (actual[1][:, ~possible] == 0).all()


# one block per row, several blocks per row
@pytest.mark.parametrize("n_cols", [4, 20_011])
def test_break_12_only_probability_0_at_logit_minus_infinity_costs_nothing(n_cols, device):
    logits = torch.randn(2, n_cols, device=device)
    target = torch.zeros(2, n_cols, device=device)
    target[:, 1] = 1
    logits[0, 2] = -torch.inf
    logits.requires_grad_()
    loss = torch_softmax.cross_entropy(logits, target)
    loss.backward()
    expected = F.cross_entropy(logits.detach(), torch.tensor([1, 1], device=device))
    torch.testing.assert_close(loss.detach(), expected)
    assert logits.grad.isfinite().all()
    # a positive probability there has an infinite loss
    target[0, 2] = 0.5
    assert torch_softmax.cross_entropy(logits.detach(), target) == torch.inf


@pytest.mark.parametrize("n_cols", [10, 1000, 20_011])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@with_and_without_compiler
def test_cross_entropy_of_infinities_is_as_in_torch(n_cols, label_smoothing, device):
    inf = torch.inf
    logits = torch.randn(7, n_cols, device=device)
    logits[0, : n_cols // 2] = -inf  # a whole leading block where a row has several
    logits[1] = -inf
    logits[2, 1:] = -inf
    logits[3, 3] = inf
    logits[4, 3] = torch.nan
    logits[5] -= 10_000
    logits[6, -1] = -inf
    target = torch.full((7,), n_cols - 1, device=device)
    assert_cross_entropy_agrees(logits, target, reduction="none", label_smoothing=label_smoothing)


# results of F.cross_entropy for extreme rows of logits with target 0
EXTREME_ROWS = {
    "-inf beside the target": ([0.5, -INF, 1.0], {}, torch.isfinite, torch.isfinite),
    "-inf at the target": ([-INF, 0.5, 1.0], {}, torch.isposinf, torch.isfinite),
    "+inf at the target": ([INF, 0.5, 1.0], {}, torch.isnan, torch.isnan),
    "+inf beside the target": ([0.5, INF, 1.0], {}, torch.isnan, torch.isnan),
    "a row of -inf": ([-INF, -INF, -INF], {}, torch.isnan, torch.isnan),
    "NaN": ([0.5, NAN, 1.0], {}, torch.isnan, torch.isnan),
    "smoothing with a -inf class": (
        [0.5, -INF, 1.0],
        {"label_smoothing": 0.1},
        torch.isposinf,
        torch.isfinite,
    ),
}


@pytest.mark.parametrize(
    ("row", "options", "loss_is", "gradient_is"), EXTREME_ROWS.values(), ids=EXTREME_ROWS
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@with_and_without_compiler
def test_cross_entropy_of_extreme_rows_is_as_in_torch(
    reduction, row, options, loss_is, gradient_is, device
):
    logits = torch.tensor([row, [1.0, 2.0, 3.0]], device=device)
    target = torch.tensor([0, 1], device=device)
    assert_cross_entropy_agrees(logits, target, reduction=reduction, **options)
    loss, dlogits = value_and_gradients(
        torch_softmax.cross_entropy, logits, target, reduction=reduction, **options
    )
    assert loss_is(loss.flatten()[0])
    assert gradient_is(dlogits[0]).any()


@pytest.mark.parametrize("weight", [[0.0, 0.0, 0.0], [1.0, -1.0, 5.0]], ids=str)
def test_cross_entropy_with_weights_that_sum_to_0_is_as_in_torch(weight, device):
    logits = torch.randn(2, 3, device=device)
    target = torch.tensor([0, 1], device=device)
    weight = torch.tensor(weight, device=device)
    assert_cross_entropy_agrees(logits, target, weight)
    assert not torch_softmax.cross_entropy(logits, target, weight).isfinite()
