"""Rounding: sums, small gradients, small losses."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from devices import with_and_without_compiler
from numerics import value_and_gradients, widened
from operator_pairs import assert_cross_entropy_agrees

HALF_DTYPES = (torch.float16, torch.bfloat16)


@with_and_without_compiler
def test_cross_entropy_keeps_small_losses_of_large_logits(device):
    # a log-sum-exp near 10,000 rounded to float32 would leave the loss three correct digits
    logits = 10_000 + torch.randn(20, 10, device=device)
    target = torch.arange(20, device=device) % 10
    assert_cross_entropy_agrees(logits, target, reduction="none")


def test_cross_entropy_under_autocast_is_float32(device):
    logits = torch.randn(3, 4, device=device, dtype=torch.bfloat16)
    target = torch.tensor([0, 1, 2], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        loss = torch_softmax.cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target))


def test_cross_entropy_scales_a_float16_gradient_before_rounding_it(device):
    logits = (4 * torch.randn(8, 1000, device=device)).half().requires_grad_()
    target = torch.randint(1000, (8,), device=device)
    loss = torch_softmax.cross_entropy(logits, target)
    (actual,) = torch.autograd.grad(2**14 * loss, logits)
    exact = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(2**14 * F.cross_entropy(exact, target), exact)
    torch.testing.assert_close(actual, expected.half())
    # gradients that underflow to 0 in float16 unless they are scaled first
    assert (expected / 2**14).half().eq(0).any()


def test_cross_entropy_of_float16_computes_a_gradient_for_each_backward(device):
    logits = torch.randn(8, 10, device=device).half().requires_grad_()
    target = torch.arange(8, device=device)
    loss = torch_softmax.cross_entropy(logits, target, label_smoothing=0.1)
    exact = logits.detach().double().requires_grad_()
    exact_loss = F.cross_entropy(exact, target, label_smoothing=0.1)
    (expected,) = torch.autograd.grad(exact_loss, exact)
    for factor in (1, 2**10):
        (actual,) = torch.autograd.grad(factor * loss, logits, retain_graph=True)
        torch.testing.assert_close(actual, (factor * expected).half())
    factors = torch.tensor([1.0, 2.0], dtype=torch.float16, device=device)
    (batch,) = torch.autograd.grad(loss, logits, factors, is_grads_batched=True)
    torch.testing.assert_close(batch, torch.stack([expected, 2 * expected]).half())


def test_cross_entropy_of_float16_overwrites_the_logits_in_backward(device):
    leaf = torch.randn(8, 10, device=device).half().requires_grad_()
    target = torch.arange(8, device=device)
    (expected,) = torch.autograd.grad(torch_softmax.cross_entropy(leaf, target), leaf)
    logits = leaf.clone()
    loss = torch_softmax.cross_entropy(logits, target, inplace=True)
    assert torch.equal(logits, leaf)
    loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, expected)
    assert torch.equal(logits, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# the number of rows and the sum of the weights exceed the largest float16, 65504
@pytest.mark.parametrize(
    ("reduction", "dtype", "n_rows"),
    [
        ("mean", torch.float16, 70_000),
        # counting in bfloat16 stops at 256
        ("mean", torch.bfloat16, 1000),
        *itertools.product(["weighted mean", "sum"], HALF_DTYPES, [1000]),
    ],
)
@pytest.mark.parametrize("soft", [False, True])
@with_and_without_compiler
def test_break_09_half_precision_counts_beyond_65504(soft, reduction, dtype, n_rows, device):
    # small losses, whose sum float16 can represent
    logits = torch.tensor([0.0, 5.0], dtype=dtype, device=device).repeat(n_rows, 1)
    target = torch.ones(n_rows, dtype=torch.long, device=device)
    target = F.one_hot(target).to(dtype) if soft else target
    weighted = reduction == "weighted mean"
    weight = torch.tensor([300.0, 150.0], dtype=dtype, device=device) if weighted else None
    args = (logits, target, weight)
    options = {"reduction": reduction.removeprefix("weighted ")}
    actual = value_and_gradients(torch_softmax.cross_entropy, *args, **options)
    exact = value_and_gradients(F.cross_entropy, *map(widened, args), **options)
    torch.testing.assert_close(actual, tuple(x.to(dtype) for x in exact))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@with_and_without_compiler
def test_break_10_a_confident_rows_gradient_survives_rounding(dtype, soft, device):
    # a probability that rounds to 1: subtracting 1 after that would leave a gradient of 0
    logits = torch.zeros(1, 10, dtype=dtype, device=device)
    logits[0, 3] = 11
    assert logits.float().softmax(1)[0, 3].to(dtype) == 1
    target = torch.tensor([3], device=device)
    target = F.one_hot(target, 10).to(dtype) if soft else target
    _, dlogits = value_and_gradients(torch_softmax.cross_entropy, logits, target)
    target = target.double() if soft else target
    _, exact = value_and_gradients(F.cross_entropy, logits.double(), target)
    # two roundings, because the interpreter truncates to bfloat16
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny}
    torch.testing.assert_close(dlogits.double(), exact, **tolerance)
