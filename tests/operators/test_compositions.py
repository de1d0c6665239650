"""Compositions of transforms give the value of PyTorch's own function."""

import pytest
import torch

from compositions import COMPOSITIONS, DIFFERENTIABLE, FUNCTIONS, around, logits, scalar


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_composition_has_torchs_value(name, composition):
    transform, x = COMPOSITIONS[composition], logits()
    actual, expected = (transform(f)(x) for f in FUNCTIONS[name])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("composition", DIFFERENTIABLE)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_composition_has_torchs_derivative(name, composition):
    transform, x = COMPOSITIONS[composition], logits().requires_grad_()
    actual, expected = (around(transform(f))(x) for f in FUNCTIONS[name])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_of_the_gradient_has_torchs_value(name):
    x = logits().requires_grad_()
    results = []
    for f in FUNCTIONS[name]:
        (gradient,) = torch.autograd.grad(scalar(f)(x), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x, create_graph=True)
        results.append((gradient, second, *torch.autograd.grad(second.square().sum(), x)))
    torch.testing.assert_close(*results)
