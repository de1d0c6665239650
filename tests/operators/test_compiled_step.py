"""A compiled training step uses the operators of the eager one, and no more memory."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_and_get_code

import torch_softmax

# torch.compile accesses .grad of inputs that are not leaves, which warns
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")

LOGITS = torch.randn(5, 4)
TARGET = torch.tensor([0, 3, -100, 2, 1])


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


def step(loss_function, factor=1.0):
    """Loss and gradient of a linear layer, in one line each as a training loop has them."""
    logits = LOGITS.clone().requires_grad_()
    loss = loss_function(logits * 1.5, TARGET)
    (factor * loss).backward()
    return loss, logits.grad


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_compiled_step_scales_the_gradient_in_place(factor):
    expected = step(F.cross_entropy, factor)
    with torch._inductor.config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        actual, codes = run_and_get_code(step, compiled(torch_softmax.cross_entropy), factor)
    torch.testing.assert_close(actual, expected)
    forward, backward = codes
    assert forward.count("torch_softmax.cross_entropy_loss.default(") == 1
    assert backward.count("torch_softmax.scale_inplace.default(") == 1
    assert "empty_strided_cpu(" not in backward.partition("def call")[2]


def test_compiled_step_scales_a_copy_of_a_retained_gradient():
    def two_gradients(logits, target):
        logits = logits.requires_grad_()
        loss = torch_softmax.cross_entropy(logits, target)
        return torch.autograd.grad(loss, logits)[0]

    with torch._functorch.config.patch(donated_buffer=False):
        loss_function = compiled(torch_softmax.cross_entropy)
        logits = LOGITS.clone().requires_grad_()
        loss = loss_function(logits, TARGET)
        first, second = (
            torch.autograd.grad(loss, logits, torch.tensor(factor), retain_graph=True)[0]
            for factor in (2.0, 3.0)
        )
    torch.testing.assert_close(first, 2 * two_gradients(LOGITS.clone(), TARGET))
    torch.testing.assert_close(second, 3 * two_gradients(LOGITS.clone(), TARGET))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_step_leaves_the_logits_alone_in_place(backend):
    torch._dynamo.reset()
    loss_function = torch.compile(
        lambda x: torch_softmax.cross_entropy(x, TARGET, inplace=True),
        backend=backend,
        fullgraph=True,
    )
    logits = (LOGITS * 1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_function(logits), logits)
    assert torch.equal(logits.detach(), LOGITS)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(F.cross_entropy(logits, TARGET), logits)[0]
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_autograd_gives_the_same_gradient(backend):
    expected = step(F.cross_entropy)
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend)):
        actual = step(torch_softmax.cross_entropy)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["cross_entropy", "softmax"])
def test_compiled_function_refuses_an_unsupported_second_derivative(backend, name):
    functions = {
        "cross_entropy": lambda x: torch_softmax.cross_entropy(x, TARGET),
        "softmax": lambda x: torch_softmax.softmax(x, 1).square().sum(),
    }
    torch._dynamo.reset()
    x = LOGITS.clone().requires_grad_()
    loss = torch.compile(functions[name], backend=backend, fullgraph=True)(x)
    with pytest.raises(RuntimeError):
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
