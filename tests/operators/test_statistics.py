"""The statistics that cross_entropy_with_stats returns for each row."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from numerics import assert_as_accurate_as_torch
from operator_pairs import softcapped


@pytest.mark.parametrize("shape", [(37, 10), (3, 1000), (2, 20_011)])
@pytest.mark.parametrize("soft", [False, True])
def test_statistics_are_those_of_the_capped_logits(soft, shape, device):
    logits = 3 * torch.randn(shape, device=device)
    target = torch.randint(shape[1], shape[:1], device=device)
    if soft:
        target = F.one_hot(target, shape[1]).float()
    options = {"softcap": 4.0, "logit_scale": 1.5}
    stats = torch_softmax.cross_entropy_with_stats(logits, target, **options)
    # on a GPU two kernels, which sum the rows in different orders
    tolerance = {"rtol": 0, "atol": 0} if logits.is_cpu else {}
    loss = torch_softmax.cross_entropy(logits, target, **options)
    torch.testing.assert_close(stats.loss, loss, **tolerance)

    z, z_exact = (softcapped(x, **options) for x in (logits, logits.double()))
    baseline, exact = (torch.distributions.Categorical(logits=x) for x in (z, z_exact))
    assert_as_accurate_as_torch(stats.entropy, baseline.entropy(), exact.entropy())
    lse, lse_exact = (torch.logsumexp(x, 1) for x in (z, z_exact))
    assert_as_accurate_as_torch(stats.lse, lse, lse_exact)
    assert torch.equal(stats.prediction, logits.argmax(1))


def test_statistics_have_the_shape_of_the_rows(device):
    logits = torch.randn(2, 5, 3, 4, device=device, dtype=torch.float16)
    target = torch.randint(5, (2, 3, 4), device=device)
    stats = torch_softmax.cross_entropy_with_stats(logits, target, reduction="none")
    assert {x.shape for x in stats} == {target.shape}
    assert [x.dtype for x in stats] == [
        torch.float16,
        torch.float32,
        torch.float32,
        torch.int64,
    ]


def test_statistics_of_extreme_rows(device):
    logits = torch.zeros(4, 10, device=device)
    logits[0, 1:] = -torch.inf
    logits[1] = 10_000
    logits[2] = -10_000
    logits[3, 2] = 200
    stats = torch_softmax.cross_entropy_with_stats(logits, torch.zeros(4, device=device).long())
    log_10 = torch.tensor(10.0).log().item()
    expected = torch.tensor([0, log_10, log_10, 0], device=device)
    torch.testing.assert_close(stats.entropy, expected)
    assert stats.prediction.tolist() == [0, 0, 0, 2]
    torch.testing.assert_close(stats.lse, torch.logsumexp(logits, 1))


def test_statistics_are_differentiable_together(device):
    """The loss of policy gradients: log-probability and entropy of one distribution."""
    logits = torch.randn(6, 5, device=device, requires_grad=True)
    action = torch.randint(5, (6,), device=device)
    advantage = torch.randn(6, device=device)
    stats = torch_softmax.cross_entropy_with_stats(logits, action, reduction="none")
    (actual,) = torch.autograd.grad(
        (stats.loss * advantage - 0.1 * stats.entropy + 0.01 * stats.lse).sum(), logits
    )
    policy = torch.distributions.Categorical(logits=logits)
    loss = -policy.log_prob(action) * advantage - 0.1 * policy.entropy()
    (expected,) = torch.autograd.grad((loss + 0.01 * torch.logsumexp(logits, 1)).sum(), logits)
    torch.testing.assert_close(actual, expected)
