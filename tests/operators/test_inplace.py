"""inplace=True: the gradient overwrites the logits."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from devices import with_and_without_compiler

LAYOUTS = {
    "matrix": lambda x: x,
    "view": lambda x: x.view(4, 2, 10).view(8, 10),
    "channels first": lambda x: x.view(2, 10, 4),
    "tokens": lambda x: x.view(2, 4, 10)[:, :3].transpose(1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@with_and_without_compiler
def test_inplace_overwrites_the_logits_by_their_gradient(layout, device):
    leaf = torch.randn(8, 10, device=device, requires_grad=True)
    produced = leaf * 1
    logits = LAYOUTS[layout](produced)
    target = torch.randint(10, logits[:, 0].shape, device=device)
    received = []
    hook = logits.register_hook(received.append)
    (expected,) = torch.autograd.grad(
        F.cross_entropy(LAYOUTS[layout](leaf), target, label_smoothing=0.1), leaf
    )
    memory = logits.data_ptr()
    hook.remove()
    loss = torch_softmax.cross_entropy(logits, target, label_smoothing=0.1, inplace=True)
    loss.backward()
    torch.testing.assert_close(leaf.grad, expected)
    assert logits.data_ptr() == memory
    torch.testing.assert_close(logits.detach(), LAYOUTS[layout](expected))


def inplace_loss(logits):
    return torch_softmax.cross_entropy(
        logits, torch.zeros(3, dtype=torch.long, device=logits.device), inplace=True
    )


def test_inplace_makes_a_later_use_of_the_logits_raise(device):
    logits = torch.randn(3, 4, device=device, requires_grad=True) * 1
    loss = inplace_loss(logits)
    with pytest.raises(RuntimeError, match="cannot be used after it"):
        (loss + logits.sum()).backward()


def test_inplace_makes_an_earlier_use_that_saved_the_logits_raise(device):
    logits = torch.randn(3, 4, device=device, requires_grad=True) * 1
    penalty = logits.square().sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (inplace_loss(logits) + penalty).backward()


def test_inplace_does_not_affect_an_earlier_use_that_saved_nothing(device):
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    logits = leaf * 1
    total = logits.sum()
    (inplace_loss(logits) + total).backward()
    (expected,) = torch.autograd.grad(
        F.cross_entropy(leaf, torch.zeros(3, dtype=torch.long, device=device)), leaf
    )
    torch.testing.assert_close(leaf.grad, expected + 1)


def test_inplace_refuses_unsupported_inputs(device):
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        inplace_loss(leaf)
    loss = inplace_loss(leaf * 1)
    with pytest.raises(RuntimeError, match="inplace=False for second derivatives"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(ValueError, match="inplace=False for input whose batch dims do not"):
        irregular = torch.randn(3, 4, 6, 6, device=device, requires_grad=True)[..., ::2, 1:]
        target = torch.zeros(3, 3, 5, dtype=torch.long, device=device)
        torch_softmax.cross_entropy(irregular, target, inplace=True)
    with pytest.raises(ValueError, match="inplace=False for expanded input"):
        inplace_loss((leaf[:1] * 1).expand(3, 4))


def test_inplace_gives_every_backward_its_gradient(device):
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    loss = inplace_loss(leaf * 1)
    (first,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 2.0), retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(first, 2 * second)


def test_inplace_refuses_logits_that_retain_their_gradient(device):
    logits = torch.randn(3, 4, device=device, requires_grad=True) * 1
    logits.retain_grad()
    with pytest.raises(ValueError, match="inplace=False for input with retain_grad"):
        inplace_loss(logits)


def test_inplace_without_a_gradient_does_not_write_the_logits(device):
    logits = torch.randn(3, 4, device=device)
    before = logits.clone()
    inplace_loss(logits)
    with torch.no_grad():
        inplace_loss(logits.requires_grad_())
    assert torch.equal(logits.detach(), before)
