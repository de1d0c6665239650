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


def linear_operator_arguments(device):
    """Arguments for the operators of linear heads, in one chunk and in several."""
    x, linear_weight = torch.randn(6, 3, device=device), torch.randn(5, 3, device=device)
    several = (torch.randn(10, 3, device=device), torch.randint(5, (6, 2), device=device))
    target = torch.tensor([0, 4, -100, 2, -100, 1], device=device)
    soft = torch.softmax(torch.randn(6, 5, device=device), -1)
    bias, weight = torch.randn(5, device=device), torch.rand(5, device=device)
    mean, capped = (-100, "mean", 0.1, 0.01, None, 1.0), (-100, "sum", 0.0, 0.0, 2.0, 1.5)
    float32, every, none = torch.float32, [True] * 3, [False] * 3
    ignored = target == -100
    of_indices = (x, linear_weight, target.clamp(min=0), bias, weight, ignored, 1.5, 2.0, float32)
    of_soft = (x, linear_weight, soft, None, None, None, 1.0, None, float32)
    stats, rows = torch.randn(6, 2, device=device), torch.rand(6, device=device)
    return {
        "linear_cross_entropy_loss": [
            (x, linear_weight, target, bias, weight, None, *mean, float32, float32, 4, every),
            (x, linear_weight, soft, None, None, None, *capped, float32, float32, None, none),
            (
                *(x.bfloat16(), several[0].bfloat16(), several[1], None, weight, None, *mean),
                *(float32, torch.bfloat16, 4, [True, True, False]),
            ),
        ],
        "linear_cross_entropy_forward": [(*of_indices, 4, True), (*of_soft, None, False)],
        "linear_cross_entropy_backward": [
            (*of_indices, 4, stats, rows, rows, rows, rows, every),
            (*of_soft, None, stats, rows, rows, None, None, [False, True, False]),
        ],
    }
