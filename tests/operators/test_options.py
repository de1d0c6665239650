"""What cross_entropy offers beyond PyTorch: z_loss, softcap, logit_scale, statistics, inplace."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from numerics import assert_as_accurate_as_torch

OPTIONS = [
    {"z_loss": 0.1},
    {"softcap": 2.0},
    {"logit_scale": -1.5},
    {"z_loss": 0.1, "softcap": 3.0, "logit_scale": 0.5, "label_smoothing": 0.2},
]
# few classes whose tile is padded, one block a row, a walked row
SHAPES = [(37, 10), (3, 1000), (2, 50257)]


def with_torch(logits, target, *, z_loss=0.0, softcap=None, logit_scale=1.0, **options):
    """The definition, in PyTorch's operators."""
    z = logits * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    loss = F.cross_entropy(z, target, reduction="none", **options)
    counted = target != -100 if target.dim() < logits.dim() else torch.ones_like(loss)
    lse = torch.logsumexp(z, 1)
    return (loss + z_loss * lse.square() * counted).sum() / counted.sum()


def value_and_gradient(loss_function, logits, *args, **options):
    logits = logits.detach().requires_grad_()
    loss = loss_function(logits, *args, **options)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_options_are_as_accurate_as_their_definition(soft, options, shape, dtype, device):
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    target = torch.randint(shape[1], shape[:1], device=device)
    target[0] = -100
    if soft:
        target = torch.rand(shape, device=device).softmax(1).to(dtype)
    ours = value_and_gradient(torch_softmax.cross_entropy, logits, target, **options)
    baseline = value_and_gradient(with_torch, logits, target, **options)
    target = target.double() if soft else target
    exact = value_and_gradient(with_torch, logits.double(), target, **options)
    for result, theirs, truth in zip(ours, baseline, exact, strict=True):
        assert_as_accurate_as_torch(result, theirs, truth)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("soft", [False, True])
def test_statistics_are_those_of_the_capped_logits(soft, shape, device):
    logits = 3 * torch.randn(shape, device=device)
    target = torch.randint(shape[1], shape[:1], device=device)
    if soft:
        target = F.one_hot(target, shape[1]).float()
    options = {"softcap": 4.0, "logit_scale": 1.5}
    stats = torch_softmax.cross_entropy_with_stats(logits, target, **options)
    # on a GPU two kernels, which add up the rows in another order
    tolerance = {"rtol": 0, "atol": 0} if logits.is_cpu else {}
    loss = torch_softmax.cross_entropy(logits, target, **options)
    torch.testing.assert_close(stats.loss, loss, **tolerance)

    def capped(x):
        return 4.0 * torch.tanh(1.5 * x / 4.0)

    exact = torch.distributions.Categorical(logits=capped(logits.double()))
    baseline = torch.distributions.Categorical(logits=capped(logits))
    assert_as_accurate_as_torch(stats.entropy, baseline.entropy(), exact.entropy())
    lse, lse_exact = (torch.logsumexp(capped(x), 1) for x in (logits, logits.double()))
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


LAYOUTS = {
    "matrix": lambda x: x,
    "view": lambda x: x.view(4, 2, 10).view(8, 10),
    "channels first": lambda x: x.view(2, 10, 4),
    "tokens": lambda x: x.view(2, 4, 10)[:, :3].transpose(1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inplace_turns_the_memory_of_the_logits_into_their_gradient(layout, device):
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


def test_inplace_leaves_an_earlier_use_that_saved_nothing_alone(device):
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    logits = leaf * 1
    total = logits.sum()
    (inplace_loss(logits) + total).backward()
    (expected,) = torch.autograd.grad(
        F.cross_entropy(leaf, torch.zeros(3, dtype=torch.long, device=device)), leaf
    )
    torch.testing.assert_close(leaf.grad, expected + 1)


def test_inplace_refuses_what_it_cannot_do(device):
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        inplace_loss(leaf)
    loss = inplace_loss(leaf * 1)
    with pytest.raises(RuntimeError, match="inplace=False for second derivatives"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    loss = inplace_loss(leaf * 1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(ValueError, match="inplace=False for input whose axes do not fold"):
        irregular = torch.randn(3, 4, 6, 6, device=device, requires_grad=True)[..., ::2, 1:]
        target = torch.zeros(3, 3, 5, dtype=torch.long, device=device)
        torch_softmax.cross_entropy(irregular, target, inplace=True)
    with pytest.raises(ValueError, match="inplace=False for expanded input"):
        inplace_loss((leaf[:1] * 1).expand(3, 4))


def test_inplace_without_a_gradient_leaves_the_logits_alone(device):
    logits = torch.randn(3, 4, device=device)
    before = logits.clone()
    inplace_loss(logits)
    with torch.no_grad():
        inplace_loss(logits.requires_grad_())
    assert torch.equal(logits.detach(), before)
