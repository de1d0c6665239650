"""LinearCrossEntropyLoss: its parameters are PyTorch's, its settings reach the function."""

import pytest
import torch
from torch import nn

import torch_softmax
from linear_heads import linear_definition


def test_linear_module_has_the_parameters_of_pytorchs():
    if not hasattr(nn, "LinearCrossEntropyLoss"):
        pytest.skip("needs PyTorch 2.13")
    settings = {"out_features": (2,), "bias": True, "weight": torch.rand(5)}
    ours = torch_softmax.LinearCrossEntropyLoss(3, 5, **settings)
    theirs = nn.LinearCrossEntropyLoss(3, 5, **settings)
    theirs.load_state_dict(ours.state_dict())
    x, target = torch.randn(4, 3), torch.randint(5, (4, 2))
    torch.testing.assert_close(ours(x, target), theirs(x, target))


def test_linear_module_passes_its_settings_on():
    settings = {"z_loss": 0.1, "softcap": 2.0, "logit_scale": 1.5, "reduction": "sum"}
    module = torch_softmax.LinearCrossEntropyLoss(3, 5, chunk_size=2, **settings)
    x, target = torch.randn(4, 3), torch.randint(5, (4,))
    expected = linear_definition(x, module.linear.weight, target, **settings)
    torch.testing.assert_close(module(x, target), expected)


def test_linear_module_takes_a_denominator_with_each_call():
    module = torch_softmax.LinearCrossEntropyLoss(3, 5)
    x, target = torch.randn(4, 3), torch.randint(5, (4,))
    torch.testing.assert_close(module(x, target, denominator=8), module(x, target) / 2)


def test_linear_module_shows_its_settings():
    module = torch_softmax.LinearCrossEntropyLoss(3, 5, softcap=30.0, chunk_size=8)
    assert "num_classes=5" in repr(module)
    assert "softcap=30.0" in repr(module) and "chunk_size=8" in repr(module)


def test_linear_module_keeps_class_weights_in_its_state():
    module = torch_softmax.LinearCrossEntropyLoss(3, 5, weight=torch.ones(5))
    assert set(module.state_dict()) == {"weight", "linear.weight"}
    assert module.double().weight.dtype == torch.float64


def test_linear_module_refuses_settings_that_mean_nothing():
    for settings in ({"label_smoothing": 2.0}, {"chunk_size": 0}, {"weight": torch.ones(4)}):
        module = torch_softmax.LinearCrossEntropyLoss(3, 5, **settings)
        with pytest.raises(ValueError):
            module(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
