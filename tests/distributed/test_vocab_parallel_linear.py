"""Class-sharded linear cross-entropy is the unsharded one in float64, on every layout."""

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from sharded_classes import (
    CHUNKS,
    LAYOUTS,
    OPTIONS,
    UNEVEN,
    layout,
    local_ranks,
    replicated,
    same_on_all_ranks,
    seeds_like,
    shards,
    whole,
)
from torch_softmax import linear_cross_entropy
from torch_softmax.distributed import vocab_parallel_linear_cross_entropy

TARGET = torch.tensor([0, 4, -100, 1, 3, 2, 0])


class Head:
    """Features, weight and bias of a head, and class weights."""

    def __init__(self, n_classes, dtype=torch.double, others=()):
        self.x = torch.randn(7, 3, dtype=dtype)
        self.linear_weight = torch.randn(n_classes, *others, 3, dtype=dtype)
        self.bias = torch.randn(n_classes, *others, dtype=dtype)
        self.weight = torch.rand(n_classes, dtype=dtype) + 0.5


def unsharded(head, target, **options):
    leaves = [y.clone().requires_grad_() for y in (head.x, head.linear_weight, head.bias)]
    x, linear_weight, bias = leaves
    loss = linear_cross_entropy(x, linear_weight, target, linear_bias=bias, **options)
    return loss.detach(), torch.autograd.grad(loss, leaves, seeds_like(loss))


def sharded(counts, head, target, **options):
    with local_ranks(len(counts)):
        leaves = [replicated(head.x), shards(head.linear_weight, counts, 0)]
        leaves = [y.requires_grad_() for y in (*leaves, shards(head.bias, counts, 0))]
        if "weight" in options:
            options["weight"] = shards(options["weight"], counts, 0)
        is_index = not target.is_floating_point()
        target = replicated(target) if is_index else shards(target, counts)
        loss = vocab_parallel_linear_cross_entropy(
            leaves[0], leaves[1], target, linear_bias=leaves[2], **layout(counts), **options
        )
        value = same_on_all_ranks(loss.detach())
        dx, dweight, dbias = torch.autograd.grad(loss, leaves, seeds_like(value))
        return value, (same_on_all_ranks(dx), whole(dweight, 0), whole(dbias, 0))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("counts", LAYOUTS, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_vocab_parallel_linear_loss_is_the_unsharded_one(options, counts, chunk_size):
    head = Head(sum(counts))
    actual = sharded(counts, head, TARGET, chunk_size=chunk_size, **options)
    assert_close(actual, unsharded(head, TARGET, **options))


@pytest.mark.parametrize("counts", [CHUNKS, UNEVEN], ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_vocab_parallel_linear_loss_with_class_weights_is_the_unsharded_one(kind, counts):
    head = Head(sum(counts))
    target = TARGET
    if kind == "probabilities":
        target = torch.rand(7, sum(counts), dtype=torch.double).softmax(1)
    options = {"weight": head.weight, "label_smoothing": 0.1, "chunk_size": 3}
    actual = sharded(counts, head, target, **options)
    assert_close(actual, unsharded(head, target, **options))


@pytest.mark.parametrize("counts", [CHUNKS, UNEVEN], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vocab_parallel_linear_loss_of_several_losses_a_row_is_the_unsharded_one(reduction, counts):
    head = Head(sum(counts), others=(2,))
    target = torch.stack([TARGET, TARGET.flip(0)], 1)
    for options in ({"chunk_size": 2}, {"label_smoothing": 0.1}):
        actual = sharded(counts, head, target, reduction=reduction, **options)
        assert_close(actual, unsharded(head, target, reduction=reduction, **options))


@pytest.mark.parametrize("target", [torch.full((7,), -100), torch.zeros(0, dtype=torch.long)])
def test_vocab_parallel_linear_loss_of_no_row_is_the_unsharded_one(target):
    head = Head(sum(CHUNKS))
    head.x = head.x[: len(target)]
    for reduction in ("mean", "sum"):
        actual = sharded(CHUNKS, head, target, reduction=reduction)
        assert_close(actual, unsharded(head, target, reduction=reduction))


def test_vocab_parallel_linear_gradients_of_class_weights_and_probabilities():
    head = Head(sum(CHUNKS))
    target = torch.rand(7, sum(CHUNKS), dtype=torch.double).softmax(1)
    leaves = [y.clone().requires_grad_() for y in (head.x, head.linear_weight, target, head.weight)]
    loss = linear_cross_entropy(*leaves[:3], weight=leaves[3], label_smoothing=0.1)
    expected = torch.autograd.grad(loss, leaves)
    with local_ranks():
        parts = [replicated(head.x), shards(head.linear_weight, CHUNKS, 0)]
        parts += [shards(target, CHUNKS), shards(head.weight, CHUNKS, 0)]
        leaves = [y.requires_grad_() for y in parts]
        loss = vocab_parallel_linear_cross_entropy(
            *leaves[:3], weight=leaves[3], label_smoothing=0.1, num_classes=10
        )
        dx, *others = torch.autograd.grad(loss, leaves)
        actual = [same_on_all_ranks(dx)]
        actual += [whole(y, dim) for y, dim in zip(others, (0, 1, 0), strict=True)]
    assert_close(actual, list(expected))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vocab_parallel_linear_loss_takes_one_gather_and_one_reduction(reduction):
    head = Head(sum(CHUNKS))
    with local_ranks():
        x = replicated(head.x).requires_grad_()
        linear_weight = shards(head.linear_weight, CHUNKS, 0).requires_grad_()
        with CommDebugMode() as communication:
            loss = vocab_parallel_linear_cross_entropy(
                x, linear_weight, replicated(TARGET), num_classes=10, reduction=reduction
            )
            loss.sum().backward()
        counts = {name.__name__: n for name, n in communication.get_comm_counts().items()}
    assert counts == {"all_gather_into_tensor": 1, "all_reduce": 1}


def test_vocab_parallel_linear_loss_of_a_frozen_input_reduces_nothing():
    head = Head(sum(CHUNKS))
    with local_ranks(), CommDebugMode() as communication:
        linear_weight = shards(head.linear_weight, CHUNKS, 0).requires_grad_()
        vocab_parallel_linear_cross_entropy(
            replicated(head.x), linear_weight, replicated(TARGET), num_classes=10
        ).backward()
    assert communication.get_total_counts() == 1


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_vocab_parallel_linear_loss_compiles_to_one_graph(chunk_size, one_rank):
    head = Head(5)

    def loss(x, linear_weight):
        options = {"num_classes": 5, "label_smoothing": 0.1, "chunk_size": chunk_size}
        return vocab_parallel_linear_cross_entropy(x, linear_weight, TARGET, **options)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for function in (loss, compiled):
        leaves = [y.clone().requires_grad_() for y in (head.x, head.linear_weight)]
        value = function(*leaves)
        results.append((value, *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(results[1], results[0])


def test_vocab_parallel_linear_weight_gradient_is_added_up_in_float32(one_rank):
    head = Head(5, torch.bfloat16)
    head.x = torch.randn(512, 3, dtype=torch.bfloat16)
    target = torch.randint(5, (512,))
    gradients = []
    for function, options in (
        (vocab_parallel_linear_cross_entropy, {"num_classes": 5}),
        (linear_cross_entropy, {}),
    ):
        linear_weight = head.linear_weight.clone().requires_grad_()
        function(head.x, linear_weight, target, chunk_size=4, **options).backward()
        gradients.append(linear_weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.01, atol=1e-4)


def test_vocab_parallel_linear_errors_name_function_and_argument(one_rank):
    head = Head(5)
    for options, message in (
        ({"num_classes": 6}, "needs 6 classes on rank 0 of 1"),
        ({"linear_bias": head.bias[:2]}, "needs linear_bias of shape"),
        ({"chunk_size": 0}, "needs chunk_size of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"vocab_parallel_linear_cross_entropy {message}"):
            vocab_parallel_linear_cross_entropy(head.x, head.linear_weight, TARGET, **options)
    with pytest.raises(IndexError, match=r"vocab_parallel_linear_cross_entropy needs target in"):
        vocab_parallel_linear_cross_entropy(head.x, head.linear_weight, TARGET + 3, num_classes=5)
