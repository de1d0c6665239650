"""Derivatives of every order and mode: reverse, forward, second order and batched."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import torch_softmax
from loss_functions import FUNCTIONS, OWN_FUNCTIONS
from numerics import value_and_gradients
from operator_pairs import each_operator, each_operator_by_row

ALL_FUNCTIONS = FUNCTIONS | OWN_FUNCTIONS
# each kernel once: other tests check gradients by value, and second ones are the reference's
OF_KERNELS = (
    "softmax",
    "log_softmax",
    "weighted and smoothed",
    "capped probabilities",
    "capped statistics",
)


def check_gradients(name, device):
    function = partial(ALL_FUNCTIONS[name], torch_softmax)
    x = torch.randn(3, 4, 2, dtype=torch.double, device=device, requires_grad=True)
    # fast mode checks random directions; each element with interpreted kernels would take minutes
    gradcheck(function, x, fast_mode=True, check_forward_ad=True)
    gradgradcheck(function, x, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name", ALL_FUNCTIONS)
def test_gradients_of_every_order_and_mode_are_right(name):
    check_gradients(name, "cpu")


@pytest.mark.parametrize("name", OF_KERNELS)
def test_gradients_of_every_order_and_mode_are_right_from_kernels(name, kernel_device):
    check_gradients(name, kernel_device)


@pytest.mark.parametrize("name", ALL_FUNCTIONS)
def test_batched_gradients_are_right(name):
    x = torch.randn(3, 4, 2, dtype=torch.double, requires_grad=True)
    gradcheck(
        partial(ALL_FUNCTIONS[name], torch_softmax),
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@each_operator
def test_break_04_logits_serve_a_second_consumer(ours, theirs, device):
    leaf = torch.randn(5, 10, dtype=torch.double, device=device)
    actual, expected = (
        value_and_gradients(lambda x, f=f: (logits := x * 2).exp().mean() + f(logits).sum(), leaf)
        for f in (ours, theirs)
    )
    torch.testing.assert_close(actual, expected)


@each_operator
def test_break_05_a_second_backward_is_not_scaled_again(ours, theirs, device):
    logits = torch.randn(5, 10, dtype=torch.double, device=device, requires_grad=True)
    y = ours(logits)
    dy = torch.randn_like(y)
    for scale in (3, 0.5):
        y.backward(scale * dy, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs(logits), logits, 3.5 * dy)
    torch.testing.assert_close(logits.grad, expected)


@each_operator
def test_break_06_a_gradient_penalty_is_differentiated(ours, theirs, device):
    def penalty(function, x):
        (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        return gradient.square().sum()

    logits = torch.randn(5, 10, dtype=torch.double, device=device)
    actual, expected = (
        value_and_gradients(partial(penalty, function), logits) for function in (ours, theirs)
    )
    assert expected[1].count_nonzero() > 0
    torch.testing.assert_close(actual, expected)


@each_operator
def test_break_06_forward_mode_is_not_silently_zero(ours, theirs, device):
    logits = torch.randn(5, 10, dtype=torch.double, device=device)
    tangent = torch.randn_like(logits)
    actual, expected = (torch.func.jvp(f, (logits,), (tangent,))[1] for f in (ours, theirs))
    assert expected.count_nonzero() > 0
    torch.testing.assert_close(actual, expected)


@each_operator_by_row
def test_break_17_gradients_may_be_expanded(ours, theirs, device):
    logits = torch.randn(4, 10, dtype=torch.double, device=device, requires_grad=True)
    y = ours(logits)
    for dy in (
        torch.tensor(2.0, dtype=torch.double, device=device).expand_as(y),
        torch.rand_like(y[:1]).expand_as(y),
    ):
        (actual,) = torch.autograd.grad(y, logits, dy, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs(logits), logits, dy)
        torch.testing.assert_close(actual, expected)


def test_cross_entropy_differentiates_the_class_weights(device):
    logits = torch.randn(6, 4, device=device, dtype=torch.double)
    target = torch.tensor([3, -100, 0, 1, -100, 0], device=device)
    weight = torch.rand(4, device=device, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        torch_softmax.cross_entropy(logits, target, weight, label_smoothing=0.2), weight
    )
    log_probabilities = F.log_softmax(logits, 1)
    counted = target != -100
    row_weight = weight[target.clamp(min=0)] * counted
    nll = -log_probabilities.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    smooth = -(log_probabilities * weight).sum(1) * counted
    loss = (0.8 * row_weight * nll + 0.05 * smooth).sum() / row_weight.sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, weight)[0])


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_second_derivatives_of_class_weights_beside_constant_logits_are_right(kind):
    x = torch.randn(4, 5, dtype=torch.double)
    target = torch.tensor([0, 4, 2, -100]) if kind == "indices" else x.flip(0).softmax(1)
    weight = torch.rand(5, dtype=torch.double, requires_grad=True)

    def loss(weight):
        options = {"label_smoothing": 0.1, "z_loss": 0.1, "reduction": "sum"}
        return torch_softmax.cross_entropy(x, target, weight, **options)

    gradcheck(loss, weight)
    gradgradcheck(lambda weight: loss(weight).square(), weight)


def test_second_derivative_of_what_depends_on_constants_alone_is_zero():
    x, weight = torch.randn(4, 5), torch.rand(5, requires_grad=True)
    target = torch.tensor([0, 4, 2, 1])
    stats = torch_softmax.cross_entropy_with_stats(x, target, weight, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(
        stats.lse.sum(), weight, create_graph=True, allow_unused=True, materialize_grads=True
    )
    assert torch.equal(gradient, torch.zeros(5))
