"""Second and third derivatives of class-sharded losses are those of the unsharded ones."""

import pytest
import torch

from sharded_classes import CHUNKS, EQUAL, OPTIONS, layout, local_ranks, replicated, shards, whole
from torch_softmax import cross_entropy, cross_entropy_with_stats, linear_cross_entropy
from torch_softmax.distributed import (
    vocab_parallel_cross_entropy,
    vocab_parallel_cross_entropy_with_stats,
    vocab_parallel_linear_cross_entropy,
)

TARGET = torch.tensor([0, 4, -100, 9])


def penalized_gradients(loss, leaves, order=2):
    """Gradients of a loss with penalties of its derivatives, each rank adding those of its part."""
    total = loss = loss.sum()
    for _ in range(order - 1):
        derivatives = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        loss = sum(x.square().sum() for x in derivatives)
        total = total + loss
    return torch.autograd.grad(total, leaves)


def rows(n_classes, kind):
    random = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(4, n_classes, dtype=torch.double, generator=random)
    target = TARGET
    if kind == "probabilities":
        target = torch.rand(4, n_classes, dtype=torch.double, generator=random).softmax(1)
    return logits, target, torch.rand(n_classes, dtype=torch.double, generator=random) + 0.5


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("counts", [EQUAL, CHUNKS], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_vocab_parallel_higher_derivatives_are_the_unsharded_ones(options, counts, order):
    logits, target, _ = rows(sum(counts), "indices")
    x = logits.clone().requires_grad_()
    expected = penalized_gradients(cross_entropy(x, target, **options), [x], order)
    with local_ranks():
        x = shards(logits, counts).requires_grad_()
        args = (x, replicated(target))
        loss = vocab_parallel_cross_entropy(*args, **layout(counts), **options)
        (actual,) = penalized_gradients(loss, [x], order)
        assert_close(whole(actual), expected[0])


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("name", ["none", "smoothing", "all"])
def test_vocab_parallel_second_derivatives_of_weights_are_the_unsharded_ones(name, kind):
    logits, target, weight = rows(10, kind)
    leaves = [
        x.clone().requires_grad_() for x in (logits, target, weight) if x.dtype == torch.double
    ]
    whole_target = leaves[1] if kind == "probabilities" else target
    loss = cross_entropy(leaves[0], whole_target, leaves[-1], **OPTIONS[name])
    expected = penalized_gradients(loss, leaves)
    with local_ranks():
        x, w = shards(logits, CHUNKS).requires_grad_(), shards(weight, CHUNKS, 0).requires_grad_()
        leaves, target = [x, w], replicated(target) if kind == "indices" else shards(target, CHUNKS)
        if kind == "probabilities":
            leaves.insert(1, target.requires_grad_())
        loss = vocab_parallel_cross_entropy(x, target, w, num_classes=10, **OPTIONS[name])
        actual = penalized_gradients(loss, leaves)
        assert_close([whole(y, 0 if y.dim() == 1 else 1) for y in actual], list(expected))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["none", "mean", "smoothing"])
def test_vocab_parallel_class_weights_have_no_gradient_from_an_ignored_row(name, number):
    logits, target, weight = rows(10, "indices")
    logits[target == -100] = number
    w = weight.clone().requires_grad_()
    loss = cross_entropy(logits, target, w, **OPTIONS[name]).sum()
    (expected,) = torch.autograd.grad(loss, w)
    assert expected.isfinite().all()
    with local_ranks():
        x, w = shards(logits, CHUNKS), shards(weight, CHUNKS, 0).requires_grad_()
        args = (x, replicated(target), w)
        loss = vocab_parallel_cross_entropy(*args, num_classes=10, **OPTIONS[name]).sum()
        (actual,) = torch.autograd.grad(loss, w)
        assert_close(whole(actual, 0), expected)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_vocab_parallel_second_derivatives_of_ignored_rows_are_zero(number):
    logits, target, _ = rows(10, "indices")
    logits[target == -100] = number
    options = {"label_smoothing": 0.1, "z_loss": 0.1}
    x = logits.clone().requires_grad_()
    (expected,) = penalized_gradients(cross_entropy(x, target, **options), [x])
    with local_ranks():
        x = shards(logits, CHUNKS).requires_grad_()
        loss = vocab_parallel_cross_entropy(x, replicated(target), num_classes=10, **options)
        (actual,) = penalized_gradients(loss, [x])
        assert_close(whole(actual), expected)


@pytest.mark.parametrize("name", ["lse", "entropy"])
def test_vocab_parallel_second_derivatives_of_statistics_are_the_unsharded_ones(name):
    logits, target, _ = rows(10, "indices")
    x = logits.clone().requires_grad_()
    statistic = getattr(cross_entropy_with_stats(x, target), name)
    (expected,) = penalized_gradients(statistic.square(), [x])
    with local_ranks():
        x = shards(logits, CHUNKS).requires_grad_()
        stats = vocab_parallel_cross_entropy_with_stats(x, replicated(target), num_classes=10)
        (actual,) = penalized_gradients(getattr(stats, name).square(), [x])
        assert_close(whole(actual), expected)


@pytest.mark.parametrize("others", [(), (2,)], ids=["one loss", "two losses"])
@pytest.mark.parametrize("name", ["none", "all"])
def test_vocab_parallel_linear_second_derivatives_are_the_unsharded_ones(name, others):
    x = torch.randn(4, 3, dtype=torch.double)
    # the ranks of one process unflatten equal shards alone
    counts = EQUAL if others else CHUNKS
    linear_weight = torch.randn(sum(counts), *others, 3, dtype=torch.double)
    target = torch.stack([TARGET, TARGET.flip(0)], 1) if others else TARGET
    leaves = [y.clone().requires_grad_() for y in (x, linear_weight)]
    loss = linear_cross_entropy(*leaves, target, **OPTIONS[name])
    expected = penalized_weight_gradient(loss, leaves)
    with local_ranks():
        leaves = [replicated(x), shards(linear_weight, counts, 0)]
        leaves = [y.requires_grad_() for y in leaves]
        loss = vocab_parallel_linear_cross_entropy(
            *leaves, replicated(target), num_classes=sum(counts), **OPTIONS[name]
        )
        dx, dweight = penalized_weight_gradient(loss, leaves)
        assert_close([dx.reconcile(), whole(dweight, 0)], list(expected))


def penalized_weight_gradient(loss, leaves):
    """As above, of the weight's gradient: that of x is the same on all ranks, and no part."""
    (derivative,) = torch.autograd.grad(loss.sum(), leaves[1], create_graph=True)
    return torch.autograd.grad(loss.sum() + derivative.square().sum(), leaves)
