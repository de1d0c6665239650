"""Linear heads beside their definition: PyTorch's linear layer, and the loss of its logits."""

import torch
import torch.nn.functional as F

import torch_softmax
from operator_pairs import cross_entropy_definition


def linear_definition(input, linear_weight, target, *, linear_bias=None, weight=None, **options):
    """Linear cross-entropy with all its options, in PyTorch's operators."""
    n_classes, *others = linear_weight.shape[:-1]
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.flatten(0, -2), bias)
    logits = logits.reshape(-1, n_classes, *others)
    shape = (-1, *(logits.shape[1:] if target.is_floating_point() else others))
    target = target.reshape(shape)
    loss = cross_entropy_definition(logits, target, weight, **options)
    is_by_row = options.get("reduction") == "none"
    return loss.view((*input.shape[:-1], *others)) if is_by_row else loss


def random_head(n_rows=11, n_features=5, n_classes=7, device="cpu", dtype=torch.float32):
    """Features, weights, targets (some ignored) and bias; all but the targets want gradients."""
    x, weight = torch.randn(n_rows, n_features), torch.randn(n_classes, n_features)
    target = torch.randint(n_classes, (n_rows,))
    target[1::4] = -100
    bias = torch.randn(n_classes)
    x, weight, bias = (y.to(device, dtype).requires_grad_() for y in (x, weight, bias))
    return x, weight, target.to(device), bias


def loss_and_gradients(x, linear_weight, target, linear_bias, factor=1.5, **options):
    """Our loss, and its gradients in the head's tensors that want one."""
    loss = torch_softmax.linear_cross_entropy(
        x, linear_weight, target, linear_bias=linear_bias, **options
    )
    wanted = [y for y in (x, linear_weight, linear_bias) if y is not None and y.requires_grad]
    dloss = factor * torch.arange(1, loss.numel() + 1, device=loss.device).view(loss.shape).cos()
    return loss.detach(), *torch.autograd.grad(loss, wanted, dloss.to(loss))
