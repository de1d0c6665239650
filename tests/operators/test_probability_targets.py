"""cross_entropy with probability targets, and their gradient."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from devices import with_and_without_compiler
from numerics import DTYPES
from operator_pairs import assert_cross_entropy_agrees
from pairwise import pairwise

# few classes with a partial last block of rows, one block per row, several blocks per row
SHAPES = [(300, 10), (3, 1000), (2, 20_011)]
OPTIONS = [{}, {"reduction": "none", "label_smoothing": 0.1}, {"reduction": "sum"}]


@pytest.mark.parametrize(
    ("shape", "options", "weighted", "dtype"), pairwise(SHAPES, OPTIONS, [False, True], DTYPES)
)
@with_and_without_compiler
def test_probability_targets_are_as_accurate_as_in_torch(shape, options, weighted, dtype, device):
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    target = torch.rand(shape, device=device).softmax(1).to(dtype).requires_grad_()
    weight = (torch.rand(shape[1], device=device) + 0.5).to(dtype) if weighted else None
    assert_cross_entropy_agrees(logits, target, weight, **options)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 7, 5), (2, 7, 3, 4)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_probability_targets_accept_every_shape(shape, options, device):
    target = torch.rand(shape, device=device, requires_grad=True)
    assert_cross_entropy_agrees(torch.randn(shape, device=device), target, **options)


def test_probability_targets_may_have_another_layout_than_the_logits(device):
    logits = torch.randn(3, 7, 4, 6, device=device)
    target = torch.rand(3, 7, 4, 6, device=device, requires_grad=True)
    channels_last = {"memory_format": torch.channels_last}
    assert_cross_entropy_agrees(logits.to(**channels_last), target)
    assert_cross_entropy_agrees(logits, target.to(**channels_last))
    assert_cross_entropy_agrees(logits, target[:, :, :1].expand_as(logits))
    assert_cross_entropy_agrees(logits, target[..., ::2].repeat_interleave(2, -1))


def test_probability_targets_need_not_have_the_dtype_of_the_logits(device):
    logits = torch.randn(3, 7, device=device, dtype=torch.bfloat16)
    target = torch.rand(3, 7, device=device).softmax(1)
    loss = torch_softmax.cross_entropy(logits, target)
    expected = F.cross_entropy(logits.double(), target.double())
    torch.testing.assert_close(loss.double(), expected, rtol=torch.finfo(loss.dtype).eps, atol=0)


def test_probability_targets_of_an_empty_batch_are_as_in_torch(device):
    for options in OPTIONS:
        logits = torch.randn(0, 4, device=device)
        assert_cross_entropy_agrees(logits, logits.clone().requires_grad_(), **options)


def test_probability_targets_alone_may_need_a_gradient(device):
    logits = torch.randn(3, 4, device=device)
    target = torch.rand(3, 4, device=device, requires_grad=True)
    torch_softmax.cross_entropy(logits, target, reduction="sum").backward()
    torch.testing.assert_close(target.grad, -F.log_softmax(logits, 1))
