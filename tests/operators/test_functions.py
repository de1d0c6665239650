"""The public autograd.Functions, applied directly."""

import torch
import torch.nn.functional as F

import torch_softmax

OPTIONS = (-100, "mean", 0.1, 0.0, None, 1.0)


def second_derivative(y, x):
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return y, gradient, *torch.autograd.grad(gradient.square().sum(), x)


def test_softmax_functions_are_differentiable(device):
    x = torch.randn(2, 5, 3, dtype=torch.double, device=device, requires_grad=True)
    for name in ("Softmax", "LogSoftmax"):
        y = getattr(torch_softmax, f"{name}Function").apply(x, 1, x.dtype)
        expected = getattr(F, "softmax" if name == "Softmax" else "log_softmax")(x, 1)
        torch.testing.assert_close(second_derivative(y, x), second_derivative(expected, x))


def test_softmax_cross_entropy_function_is_differentiable(device):
    x = torch.randn(3, 5, dtype=torch.double, device=device, requires_grad=True)
    target, weight = torch.tensor([4, -100, 0], device=device), torch.rand(5, device=device)
    loss = torch_softmax.SoftmaxCrossEntropyFunction.apply(
        x, target, weight, None, OPTIONS, x.dtype, False
    )
    expected = F.cross_entropy(x, target, weight.double(), label_smoothing=0.1)
    torch.testing.assert_close(second_derivative(loss, x), second_derivative(expected, x))
