"""What class-sharded cross-entropy communicates, refuses and overwrites."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.distributed.tensor.debug import CommDebugMode

from sharded_classes import CHUNKS, EQUAL, layout, local_ranks, replicated, shards, whole
from torch_softmax import cross_entropy
from torch_softmax.distributed import (
    vocab_parallel_cross_entropy,
    vocab_parallel_cross_entropy_with_stats,
)

LOGITS = torch.randn(5, 10, dtype=torch.double, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 3, 9, 5, -100])
FUNCTIONS = [vocab_parallel_cross_entropy, vocab_parallel_cross_entropy_with_stats]


@pytest.fixture
def ranks():
    with local_ranks() as mode:
        yield mode


def loss_of(function, x, target=TARGET, **options):
    result = function(x, target, num_classes=10, **options)
    return result if isinstance(result, torch.Tensor) else result.loss


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vocab_parallel_loss_and_gradient_take_one_gather(function, reduction, ranks):
    x = shards(LOGITS, CHUNKS).requires_grad_()
    weight = shards(torch.rand(10, dtype=torch.double), CHUNKS, 0)
    with CommDebugMode() as communication:
        options = {"label_smoothing": 0.1, "z_loss": 0.1, "reduction": reduction}
        loss_of(function, x, replicated(TARGET), weight=weight, **options).sum().backward()
    (count,) = communication.get_comm_counts().values()
    assert count == 1
    assert communication.get_total_counts() == 1


def test_vocab_parallel_loss_copies_no_logits_to_float32(one_rank):
    x = torch.randn(64, 5000, dtype=torch.bfloat16, requires_grad=True)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                sizes.append(result.numel())
            return result

    with Sizes():
        loss = vocab_parallel_cross_entropy(x, torch.zeros(64, dtype=torch.long), num_classes=5000)
        loss.backward()
    assert max(sizes) < x.numel() / 100
    assert x.grad.dtype == torch.bfloat16


def test_vocab_parallel_second_derivative_in_place_raises(one_rank):
    leaf = LOGITS.clone().requires_grad_()
    loss = vocab_parallel_cross_entropy(leaf * 1, TARGET, num_classes=10, inplace=True)
    with pytest.raises(RuntimeError, match="vocab_parallel_cross_entropy needs inplace=False"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def cross_entropy_sum(x, reduction):
    return cross_entropy(x, TARGET, reduction=reduction).sum()


def test_vocab_parallel_loss_refuses_batches_of_gradients(one_rank):
    x = LOGITS.clone().requires_grad_()
    loss = vocab_parallel_cross_entropy(x, TARGET, num_classes=10, reduction="none")
    with pytest.raises(RuntimeError, match="vocab_parallel_cross_entropy needs one backward per"):
        torch.autograd.grad(loss, x, torch.eye(5, dtype=torch.double), is_grads_batched=True)


def test_vocab_parallel_loss_refuses_transforms(one_rank):
    def loss(x):
        return vocab_parallel_cross_entropy(x, TARGET, num_classes=10)

    with pytest.raises(RuntimeError, match="in reverse mode only"):
        torch.func.grad(loss)(LOGITS)
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="in reverse mode only"),
    ):
        loss(forward_ad.make_dual(LOGITS, LOGITS))


@pytest.mark.parametrize("target", [10, -1, 2**40])
def test_vocab_parallel_loss_raises_for_an_invalid_class(target, ranks):
    x = shards(LOGITS, CHUNKS)
    targets = replicated(torch.full((5,), target))
    with pytest.raises(IndexError, match=rf"needs target in \[0, 10\) .*, got {target}"):
        vocab_parallel_cross_entropy(x, targets, num_classes=10)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vocab_parallel_gradient_takes_the_memory_of_logits_in_place(reduction, one_rank):
    leaf = LOGITS.clone().requires_grad_()
    x = leaf * 1
    memory = x.data_ptr()
    received = []
    x.register_hook(lambda gradient: received.append(gradient.data_ptr()))
    loss = vocab_parallel_cross_entropy(
        x, TARGET, num_classes=10, inplace=True, reduction=reduction
    )
    later = x.square().sum()
    loss.sum().backward()
    assert received == [memory]
    expected = torch.autograd.grad(cross_entropy_sum(leaf, reduction), leaf)[0]
    torch.testing.assert_close(leaf.grad, expected)
    with pytest.raises(RuntimeError, match="inplace"):
        later.backward()


def test_vocab_parallel_in_place_gradients_of_shards_are_the_unsharded_ones(ranks):
    leaf = shards(LOGITS, CHUNKS).requires_grad_()
    options = {"num_classes": 10, "label_smoothing": 0.1}
    vocab_parallel_cross_entropy(leaf * 1, replicated(TARGET), inplace=True, **options).backward()
    whole_leaf = LOGITS.clone().requires_grad_()
    cross_entropy(whole_leaf, TARGET, label_smoothing=0.1).backward()
    torch.testing.assert_close(whole(leaf.grad), whole_leaf.grad)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vocab_parallel_loss_compiles_to_one_graph(reduction, one_rank):
    def loss(x, weight):
        options = {"label_smoothing": 0.1, "reduction": reduction, "softcap": 3.0}
        return vocab_parallel_cross_entropy(x, TARGET, weight, num_classes=10, **options).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for function in (loss, compiled):
        x, weight = LOGITS.clone().requires_grad_(), LOGITS[0].abs().clone().requires_grad_()
        value = function(x, weight)
        results.append((value, *torch.autograd.grad(value, (x, weight))))
    torch.testing.assert_close(results[1], results[0])


def test_vocab_parallel_loss_asks_for_the_layout_outside_compiled_regions(one_rank):
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="needs num_classes under"):
        torch.compile(vocab_parallel_cross_entropy, backend="eager", fullgraph=True)(LOGITS, TARGET)
    loss = torch.compile(vocab_parallel_cross_entropy, backend="eager")(LOGITS, TARGET)
    torch.testing.assert_close(loss, cross_entropy(LOGITS, TARGET))


@pytest.mark.parametrize("target", [-1, 10])
def test_vocab_parallel_loss_of_an_invalid_class_is_nan_where_it_is_not_checked(target, one_rank):
    def loss(x, targets):
        return vocab_parallel_cross_entropy(x, targets, num_classes=10, reduction="none")

    torch._dynamo.reset()
    x, targets = LOGITS.clone().requires_grad_(), TARGET.clone()
    targets[1] = target
    y = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, targets)
    y.sum().backward()
    is_invalid = targets == target
    assert torch.equal(y.isnan(), is_invalid)
    assert torch.equal(x.grad.isnan(), is_invalid.unsqueeze(1).expand_as(x))


def test_vocab_parallel_loss_needs_a_process_group():
    with pytest.raises(RuntimeError, match=r"needs torch.distributed.init_process_group first"):
        vocab_parallel_cross_entropy(LOGITS, TARGET)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 11}, ValueError, "needs 11 classes on rank 0 of 1, its chunk of 11"),
        ({"num_classes": 0}, ValueError, "needs num_classes of at least 1, got 0"),
        ({"num_classes": 1.5}, TypeError, "needs num_classes of type int, got 1.5"),
        ({"class_offset": 1}, ValueError, "needs num_classes beside class_offset"),
        ({"class_offset": 3, "num_classes": 12}, ValueError, r"needs class_offset in \[0, 2\]"),
        ({"group": "tensor"}, TypeError, "needs group to be a ProcessGroup"),
        ({"label_smoothing": 2}, ValueError, r"needs label_smoothing in \[0, 1\]"),
        ({"weight": torch.ones(9)}, ValueError, r"needs weight of shape \(10,\)"),
    ],
)
def test_vocab_parallel_errors_name_function_and_argument(options, error, message, one_rank):
    with pytest.raises(error, match=f"vocab_parallel_cross_entropy {message}"):
        vocab_parallel_cross_entropy(LOGITS, TARGET, **options)


def test_vocab_parallel_layouts_of_chunks_need_no_offset():
    assert layout(CHUNKS) == {"num_classes": 10}
    assert layout(EQUAL) == {"num_classes": 12}


def test_vocab_parallel_loss_under_autocast_is_float32(one_rank):
    x = LOGITS.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vocab_parallel_cross_entropy(x, TARGET, num_classes=10)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(x.float(), TARGET))
