"""cross_entropy against a probability per class."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from numerics import DTYPES, assert_as_accurate_as_torch

SHAPES = [(300, 10), (3, 1000), (2, 50257)]
OPTIONS = [{}, {"reduction": "none", "label_smoothing": 0.1}, {"reduction": "sum"}]


def value_and_gradients(loss_function, logits, target, weight=None, **options):
    logits, target = (x.detach().requires_grad_() for x in (logits, target))
    weight = None if weight is None else weight.to(logits.dtype)
    loss = loss_function(logits, target, weight, **options)
    return (loss.detach(), *torch.autograd.grad(loss.sum(), (logits, target)))


def assert_agrees_with_torch(logits, target, weight=None, **options):
    ours = value_and_gradients(torch_softmax.cross_entropy, logits, target, weight, **options)
    baseline = value_and_gradients(F.cross_entropy, logits, target, weight, **options)
    exact = value_and_gradients(
        F.cross_entropy, logits.double(), target.double(), weight, **options
    )
    for result, theirs, truth in zip(ours, baseline, exact, strict=True):
        assert_as_accurate_as_torch(result, theirs, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_probability_targets_are_as_accurate_as_in_torch(shape, options, weighted, dtype, device):
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    target = torch.rand(shape, device=device).softmax(1).to(dtype)
    weight = torch.rand(shape[1], device=device) + 0.5 if weighted else None
    assert_agrees_with_torch(logits, target, weight, **options)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 7, 5), (2, 7, 3, 4)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_probability_targets_take_every_shape(shape, options, device):
    target = torch.rand(shape, device=device)
    assert_agrees_with_torch(torch.randn(shape, device=device), target, **options)


def test_probability_targets_take_a_layout_of_their_own(device):
    logits = torch.randn(3, 7, 4, 6, device=device)
    target = torch.rand(3, 7, 4, 6, device=device)
    channels_last = {"memory_format": torch.channels_last}
    assert_agrees_with_torch(logits.to(**channels_last), target)
    assert_agrees_with_torch(logits, target.to(**channels_last))
    assert_agrees_with_torch(logits, target[:, :, :1].expand_as(logits))
    assert_agrees_with_torch(logits, target[..., ::2].repeat_interleave(2, -1))


def test_probability_targets_need_not_have_the_dtype_of_the_logits(device):
    logits = torch.randn(3, 7, device=device, dtype=torch.bfloat16)
    target = torch.rand(3, 7, device=device).softmax(1)
    loss = torch_softmax.cross_entropy(logits, target)
    expected = F.cross_entropy(logits.double(), target.double())
    torch.testing.assert_close(loss.double(), expected, rtol=torch.finfo(loss.dtype).eps, atol=0)


@pytest.mark.parametrize("n_cols", [4, 50257])
def test_probability_zero_costs_nothing_where_the_logit_is_minus_infinity(n_cols, device):
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
    # a probability there does cost
    target[0, 2] = 0.5
    assert torch_softmax.cross_entropy(logits.detach(), target) == torch.inf


def test_probability_targets_of_an_empty_batch_are_as_in_torch(device):
    for options in OPTIONS:
        logits = torch.randn(0, 4, device=device)
        assert_agrees_with_torch(logits, logits.clone(), **options)


def test_probability_targets_alone_may_need_a_gradient(device):
    logits = torch.randn(3, 4, device=device)
    target = torch.rand(3, 4, device=device, requires_grad=True)
    torch_softmax.cross_entropy(logits, target, reduction="sum").backward()
    torch.testing.assert_close(target.grad, -F.log_softmax(logits, 1))
