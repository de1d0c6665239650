"""torch.func: gradients of gradients, vmap, and both together."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from loss_functions import FUNCTIONS, OWN_FUNCTIONS


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian, torch.func.jacrev])
def test_function_transforms_agree_with_torch(transform, name, device):
    x = torch.randn(3, 4, 2, dtype=torch.double, device=device)
    actual, expected = (
        transform(lambda x, library=library: FUNCTIONS[name](library, x).square().sum())(x)
        for library in (torch_softmax, F)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", FUNCTIONS | OWN_FUNCTIONS)
def test_vmap_agrees_with_a_loop(name, device):
    function = partial((FUNCTIONS | OWN_FUNCTIONS)[name], torch_softmax)
    x = torch.randn(2, 3, 4, 2, 5, dtype=torch.double, device=device)
    for in_dim, size in ((0, 2), (-1, 5)):
        samples = x[..., 0] if in_dim == 0 else x[0]
        expected = torch.stack([function(samples.select(in_dim, i)) for i in range(size)])
        torch.testing.assert_close(torch.func.vmap(function, in_dims=in_dim)(samples), expected)


def test_vmap_takes_a_weight_per_sample(device):
    logits = torch.randn(3, 5, 4, dtype=torch.double, device=device)
    target = torch.randint(4, (5,), device=device)
    weight = torch.rand(3, 4, dtype=torch.double, device=device)

    def gradient(logits, weight):
        return torch.func.grad(
            lambda x: torch_softmax.cross_entropy(x, target, weight, label_smoothing=0.1)
        )(logits)

    actual = torch.func.vmap(gradient)(logits, weight)
    expected = torch.stack([gradient(*pair) for pair in zip(logits, weight, strict=True)])
    torch.testing.assert_close(actual, expected)


def test_per_sample_gradients_agree_with_a_loop(device):
    logits = torch.randn(5, 4, dtype=torch.double, device=device)
    target = torch.tensor([0, 3, -100, 1, 2], device=device)

    def loss(logits, target):
        return torch_softmax.cross_entropy(logits, target, reduction="sum")

    actual = torch.func.vmap(torch.func.grad(loss))(logits, target)
    expected = torch.func.grad(loss)(logits, target)
    torch.testing.assert_close(actual, expected)
