"""Properties of losses and their statistics for any input and options."""

import math

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import torch_softmax
from numerics import DTYPES, assert_agrees, assert_as_accurate_as_torch, value_and_gradients
from operator_pairs import cross_entropy_definition
from strategies import (
    OPTIONS,
    SEEDS,
    SHAPES,
    SHAPES_WITH_GRADIENT,
    SPREADS,
    WIDE,
    Rows,
    property_of,
)


@property_of
@given(SHAPES, SEEDS, SPREADS, WIDE)
def test_the_entropy_lies_between_that_of_one_class_and_that_of_all(
    device, shape, seed, spread, dtype
):
    rows = Rows(shape, seed, spread, dtype, device)
    entropy = torch_softmax.cross_entropy_with_stats(rows.logits, rows.target).entropy
    torch.testing.assert_close(entropy, entropy.clamp(0, math.log(shape[1])))
    uniform = torch.zeros_like(rows.logits)
    entropy = torch_softmax.cross_entropy_with_stats(uniform, rows.target).entropy
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(shape[1])))


@property_of
@given(SHAPES, SEEDS, st.sampled_from(DTYPES))
def test_the_prediction_is_the_first_largest_logit(device, shape, seed, dtype):
    rows = Rows(shape, seed, dtype=dtype, device=device)
    # few distinct values, so most rows have several largest ones
    logits = rows.logits.round()
    prediction = torch_softmax.cross_entropy_with_stats(logits, rows.target).prediction
    assert torch.equal(prediction, logits.double().cpu().argmax(1).to(device))


@property_of
@given(SHAPES, SEEDS, SPREADS, st.sampled_from(DTYPES))
def test_the_lse_is_the_logarithm_of_the_sum_of_exponentials(device, shape, seed, spread, dtype):
    rows = Rows(shape, seed, spread, dtype, device)
    wide = rows.logits.to(torch.promote_types(dtype, torch.float32))
    lse = torch_softmax.cross_entropy_with_stats(rows.logits, rows.target).lse
    assert_as_accurate_as_torch(lse, wide.logsumexp(1), wide.double().logsumexp(1))
    assert (lse >= wide.amax(1)).all()


@property_of
@given(SHAPES, SEEDS, SPREADS, st.sampled_from([{}, {"softcap": 30.0}, {"logit_scale": 3.0}]))
def test_a_loss_is_not_negative(device, shape, seed, spread, options):
    rows = Rows(shape, seed, spread, torch.float32, device)
    smoothed = {"label_smoothing": 0.1, "z_loss": 0.1}
    for target, more in (
        (rows.ignoring, smoothed),
        (rows.probabilities, smoothed),
        # sure and right
        (rows.logits.argmax(1), {}),
    ):
        loss = torch_softmax.cross_entropy(rows.logits, target, reduction="none", **options, **more)
        assert (loss >= 0).all()
        assert torch_softmax.cross_entropy(rows.logits, target, **options, **more) >= 0


@property_of
@given(SHAPES, SEEDS, SPREADS)
def test_full_smoothing_is_a_uniform_target(device, shape, seed, spread):
    rows = Rows(shape, seed, spread, device=device)
    uniform = torch.full_like(rows.logits, 1 / shape[1])
    expected = value_and_gradients(torch_softmax.cross_entropy, rows.logits, uniform)
    for target in (rows.target, rows.probabilities):
        torch.testing.assert_close(
            value_and_gradients(
                torch_softmax.cross_entropy, rows.logits, target, label_smoothing=1.0
            ),
            expected,
        )


@property_of
@given(SHAPES, SEEDS, SPREADS, OPTIONS, st.sampled_from(["sum", "none"]))
def test_a_one_hot_target_is_its_class(device, shape, seed, spread, options, reduction):
    rows = Rows(shape, seed, spread, device=device)
    one_hot = F.one_hot(rows.target, shape[1]).to(rows.logits)
    options = options | {"weight": rows.weight, "reduction": reduction}
    torch.testing.assert_close(
        value_and_gradients(torch_softmax.cross_entropy, rows.logits, one_hot, **options),
        value_and_gradients(torch_softmax.cross_entropy, rows.logits, rows.target, **options),
    )


@property_of
@given(
    SHAPES_WITH_GRADIENT,
    SEEDS,
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    OPTIONS,
    st.sampled_from(["mean", "sum", "none"]),
    st.booleans(),
    st.booleans(),
)
def test_options_compute_their_formulas(
    device, shape, seed, dtype, options, reduction, weighted, soft
):
    rows = Rows(shape, seed, dtype=dtype, device=device)
    arguments = (
        rows.logits,
        rows.probabilities if soft else rows.ignoring,
        rows.weight if weighted else None,
    )
    assert_agrees(
        torch_softmax.cross_entropy,
        cross_entropy_definition,
        *arguments,
        reduction=reduction,
        **options,
    )


@property_of
@given(SHAPES, SEEDS, OPTIONS, st.booleans())
def test_a_power_of_2_as_scale_is_that_of_the_logits(device, shape, seed, options, soft):
    rows = Rows(shape, seed, dtype=torch.float32, device=device)
    target = rows.probabilities if soft else rows.ignoring
    options = {name: x for name, x in options.items() if name != "logit_scale"}
    stats = torch_softmax.cross_entropy_with_stats(rows.logits, target, logit_scale=4.0, **options)
    expected = torch_softmax.cross_entropy_with_stats(4 * rows.logits, target, **options)
    torch.testing.assert_close(stats, expected, rtol=0, atol=0)


@property_of
@given(SHAPES, SEEDS, OPTIONS, st.booleans(), st.booleans())
def test_reductions_are_those_of_the_rows(device, shape, seed, options, weighted, soft):
    rows = Rows(shape, seed, device=device)
    target = rows.probabilities if soft else rows.ignoring
    weight = rows.weight if weighted else None
    none, total, mean = (
        torch_softmax.cross_entropy(rows.logits, target, weight, reduction=reduction, **options)
        for reduction in ("none", "sum", "mean")
    )
    torch.testing.assert_close(total, none.sum())
    counted = (none.new_ones(none.shape) if soft else (rows.ignoring != -100).to(none)).sum()
    if weighted and not soft:
        counted = (rows.weight[rows.target] * (rows.ignoring != -100)).sum()
    torch.testing.assert_close(mean, total / counted)
