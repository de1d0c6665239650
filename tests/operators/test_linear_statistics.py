"""Loss, lse, entropy, prediction and log-probability of each row of a linear head."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from devices import runs_kernels
from linear_heads import random_head


def statistics(x, linear_weight, target, bias, **options):
    return torch_softmax.linear_cross_entropy_with_stats(
        x, linear_weight, target, linear_bias=bias, **options
    )


def statistics_of_logits(x, linear_weight, target, bias, **options):
    """Those of the logits, 0 for an ignored row, whose prediction is -1."""
    stats = torch_softmax.cross_entropy_with_stats(
        F.linear(x, linear_weight, bias), target, **options
    )
    scale, softcap = options.get("logit_scale", 1.0), options.get("softcap")
    logits = scale * F.linear(x, linear_weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    ignored = target == -100
    nll = F.cross_entropy(logits, target, reduction="none")
    lse, entropy = (y.masked_fill(ignored, 0) for y in (stats.lse, stats.entropy))
    return stats.loss, lse, entropy, stats.prediction.masked_fill(ignored, -1), -nll


def with_gradients(function, *head, **options):
    loss, lse, entropy, prediction, log_probability = function(*head, **options)
    sums = sum(
        (y * torch.arange(1, y.numel() + 1, device=y.device).view(y.shape).cos()).sum()
        for y in (loss, lse, entropy, log_probability)
    )
    x, linear_weight, _, bias = head
    gradients = torch.autograd.grad(sums, (x, linear_weight, bias))
    return (loss, lse, entropy, prediction, log_probability, *gradients)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "logit_scale": 0.7}]
)
@pytest.mark.parametrize("size", [None, 3])
def test_linear_statistics_are_those_of_the_logits(size, options, reduction, device):
    head = random_head(device=device, dtype=torch.double)
    options = options | {"reduction": reduction}
    actual = with_gradients(statistics, *head, chunk_size=size, **options)
    torch.testing.assert_close(actual, with_gradients(statistics_of_logits, *head, **options))


def test_linear_statistics_are_the_same_where_all_logits_are_computed(device):
    x, linear_weight, target, bias = random_head(device=device, dtype=torch.double)

    def in_forward_mode(x):
        return torch.func.jvp(
            lambda x: statistics(x, linear_weight, target, bias), (x,), (torch.ones_like(x),)
        )[0]

    torch.testing.assert_close(
        in_forward_mode(x.detach()), statistics(x, linear_weight, target, bias)
    )


def test_linear_statistics_have_second_derivatives(device):
    x, linear_weight, target, bias = random_head(6, 3, 4, device=device, dtype=torch.double)
    torch.autograd.gradgradcheck(
        lambda *tensors: statistics(tensors[0], tensors[1], target, tensors[2], chunk_size=2)[1:3],
        (x, linear_weight, bias),
        # the interpreter takes a second for each ten elements
        fast_mode=runs_kernels(device),
    )


def test_linear_statistics_of_target_probabilities(device):
    x, linear_weight, _, bias = random_head(device=device, dtype=torch.double)
    target = torch.softmax(torch.randn(11, 7, dtype=torch.double, device=device), -1)
    stats = statistics(x, linear_weight, target, bias, chunk_size=4)
    log_p = F.log_softmax(F.linear(x, linear_weight, bias), -1)
    torch.testing.assert_close(stats.log_probability, (target * log_p).sum(-1))
    torch.testing.assert_close(stats.loss, -(target * log_p).sum(-1).mean())


def test_linear_statistics_have_the_shape_of_the_losses(device):
    x = torch.randn(2, 3, 5, device=device)
    target = torch.randint(7, (2, 3, 2), device=device)
    stats = statistics(x, torch.randn(7, 2, 5, device=device), target, None, reduction="none")
    assert {y.shape for y in stats} == {(2, 3, 2)}


def test_linear_statistics_compile_into_one_graph(device):
    x, linear_weight, target, bias = random_head(device=device)
    torch._dynamo.reset()
    compiled = torch.compile(statistics, fullgraph=True, backend="aot_eager")
    actual = with_gradients(compiled, x, linear_weight, target, bias, chunk_size=4)
    expected = with_gradients(statistics, x, linear_weight, target, bias, chunk_size=4)
    torch.testing.assert_close(actual, expected)
