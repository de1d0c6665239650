"""patch(), which replaces PyTorch's functions."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_softmax
from torch_softmax import patching

LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.3, 0.1]])
TARGET = torch.tensor([2, 0])
ORIGINALS = (F.cross_entropy, F.softmax, F.log_softmax, nn.CrossEntropyLoss)


def names():
    return (F.cross_entropy, F.softmax, F.log_softmax, nn.CrossEntropyLoss)


def test_patch_replaces_torchs_functions_and_restores_them():
    with torch_softmax.patch():
        assert nn.CrossEntropyLoss is torch_softmax.CrossEntropyLoss
        assert not set(names()) & set(ORIGINALS)
    assert names() == ORIGINALS


def test_break_22_patch_restores_after_an_exception_and_when_nested():
    with pytest.raises(KeyError), torch_softmax.patch():
        with torch_softmax.patch():
            pass
        assert nn.CrossEntropyLoss is torch_softmax.CrossEntropyLoss
        raise KeyError
    assert names() == ORIGINALS


@pytest.mark.parametrize("name", ["cross_entropy", "softmax", "log_softmax"])
def test_patch_takes_torchs_arguments(name):
    ours = inspect.signature(getattr(patching, f"_{name}")).parameters
    theirs = inspect.signature(getattr(F, name)).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_patch_applies_to_existing_modules_and_deprecated_arguments():
    criterion, layer = nn.CrossEntropyLoss(label_smoothing=0.1), nn.Softmax(1)
    calls = (
        lambda: criterion(LOGITS, TARGET),
        lambda: layer(LOGITS),
        lambda: F.cross_entropy(LOGITS, TARGET, None, None, 0, None, "sum", 0.2),
        lambda: F.log_softmax(LOGITS, dim=1, dtype=torch.float64),
    )
    expected = [call() for call in calls]
    with torch_softmax.patch():
        actual = [call() for call in calls]
        with pytest.warns(UserWarning, match="deprecated"):
            loss = F.cross_entropy(LOGITS, TARGET, size_average=False)
        with pytest.warns(UserWarning, match="Implicit dimension"):
            probabilities = F.softmax(LOGITS)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, TARGET, reduction="sum"))
    torch.testing.assert_close(probabilities, F.softmax(LOGITS, 1))
