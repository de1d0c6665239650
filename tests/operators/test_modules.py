"""Modules: PyTorch's arguments, and the functions' results."""

import inspect

import pytest
import torch
from torch import nn

import torch_softmax


def test_modules_take_torchs_arguments_by_position_and_name():
    theirs = inspect.signature(nn.CrossEntropyLoss).parameters
    ours = inspect.signature(torch_softmax.CrossEntropyLoss).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert isinstance(torch_softmax.CrossEntropyLoss(), nn.CrossEntropyLoss)
    assert isinstance(torch_softmax.Softmax(1), nn.Softmax)
    assert isinstance(torch_softmax.LogSoftmax(1), nn.LogSoftmax)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (torch_softmax.Softmax, torch_softmax.softmax),
        (torch_softmax.LogSoftmax, torch_softmax.log_softmax),
    ],
)
def test_softmax_module_computes_the_function(module, function):
    x = torch.randn(3, 4)
    assert torch.equal(module(dim=1)(x), function(x, 1))
    assert repr(module(dim=1)) == f"{module.__name__}(dim=1)"


# each option alone, so none masks another
@pytest.mark.parametrize(
    "options",
    [
        {"weight": torch.tensor([0.5, 1.0, 2.0, 0.1])},
        {"ignore_index": 1},
        {"reduction": "sum"},
        {"label_smoothing": 0.1},
        {"z_loss": 0.1},
        {"softcap": 2.0},
        {"logit_scale": 0.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_cross_entropy_module_passes_on_its_options(options):
    logits, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 3])
    loss = torch_softmax.CrossEntropyLoss(**options)(logits, target)
    assert torch.equal(loss, torch_softmax.cross_entropy(logits, target, **options))
    assert loss != torch_softmax.cross_entropy(logits, target)


def test_cross_entropy_module_works_in_place():
    logits = torch.randn(5, 4, requires_grad=True) * 1
    torch_softmax.CrossEntropyLoss(inplace=True)(logits, torch.tensor([0, 1, 2, 3, 3])).backward()
    torch.testing.assert_close(logits.detach().sum(1), torch.zeros(5))


def test_cross_entropy_module_is_a_subclass_and_shows_its_options():
    weight = torch.rand(4)
    module = torch_softmax.CrossEntropyLoss(weight, reduction="sum", label_smoothing=0.1)
    assert torch.equal(module.state_dict()["weight"], weight)
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    assert repr(module) == (
        "CrossEntropyLoss(ignore_index=-100, reduction='sum', label_smoothing=0.1, "
        "z_loss=0.0, softcap=None, logit_scale=1.0, inplace=False)"
    )
