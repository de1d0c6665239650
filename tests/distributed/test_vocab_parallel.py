"""Class-sharded cross-entropy is the unsharded one in float64, on every layout of the classes."""

import pytest
import torch
import torch.nn.functional as F

from numerics import assert_as_accurate_as_torch
from sharded_classes import CHUNKS, ENDING, LAYOUTS, OPTIONS, UNEVEN, sharded, unsharded
from torch_softmax import cross_entropy, cross_entropy_with_stats
from torch_softmax.distributed import (
    vocab_parallel_cross_entropy,
    vocab_parallel_cross_entropy_with_stats,
)


def rows(n_classes, kind, shape=(7,), dtype=torch.double):
    logits = 3 * torch.randn(shape[0], n_classes, *shape[1:], dtype=dtype)
    if kind == "probabilities":
        return logits, torch.rand_like(logits).softmax(1)
    target = torch.randint(n_classes, shape)
    # each rank of the layouts holds one of the targets
    target.view(-1)[:2] = torch.tensor([0, n_classes - 1])
    target.view(-1)[2] = -100
    return logits, target


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("counts", LAYOUTS, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_vocab_parallel_loss_and_gradients_are_the_unsharded_ones(options, counts, kind, weighted):
    logits, target = rows(sum(counts), kind)
    weight = torch.rand(sum(counts), dtype=torch.double) + 0.5 if weighted else None
    args = (logits, target, weight)
    actual = sharded(vocab_parallel_cross_entropy, counts, *args, **options)
    expected = unsharded(cross_entropy, *args, **options)
    assert_close(actual[0], list(expected[0]))
    assert_close(actual[1], list(expected[1]))


@pytest.mark.parametrize("counts", [CHUNKS, ENDING, UNEVEN], ids=str)
@pytest.mark.parametrize("option", ["none", "smoothing", "all"])
def test_vocab_parallel_loss_of_kernels_is_the_unsharded_one(option, counts, kernel_device):
    args = [x.to(kernel_device) for x in rows(sum(counts), "indices")]
    actual = sharded(vocab_parallel_cross_entropy, counts, *args, **OPTIONS[option])
    expected = unsharded(cross_entropy, *args, **OPTIONS[option])
    assert_close(actual, (list(expected[0]), list(expected[1])))


@pytest.mark.parametrize("counts", [CHUNKS, UNEVEN], ids=str)
@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 2), (0,), (1,)], ids=str)
def test_vocab_parallel_loss_takes_every_shape_of_rows(shape, counts):
    logits = torch.randn(shape[0], sum(counts), *shape[1:], dtype=torch.double)
    target = torch.randint(sum(counts), shape)
    for options in ({"reduction": "none"}, {"label_smoothing": 0.1}):
        actual = sharded(vocab_parallel_cross_entropy, counts, logits, target, **options)
        expected = unsharded(cross_entropy, logits, target, **options)
        assert_close(actual, (list(expected[0]), list(expected[1])))


@pytest.mark.parametrize("counts", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_vocab_parallel_statistics_are_the_unsharded_ones(kind, counts):
    args = rows(sum(counts), kind)
    # rows of a tie across ranks, and of a rank whose logits are all -inf
    args[0][0] = 1.0
    args[0][1, : counts[0]] = -torch.inf
    args[1][1 if kind == "indices" else slice(1, 2)] = sum(counts) - 1 if kind == "indices" else 0
    options = {"reduction": "none", "softcap": None, "z_loss": 0.1}
    actual = sharded(vocab_parallel_cross_entropy_with_stats, counts, *args, **options)
    expected = unsharded(cross_entropy_with_stats, *args, **options)
    assert_close(actual[0], list(expected[0]))
    assert_close(actual[1][0], expected[1][0])


@pytest.mark.parametrize("name", ["lse", "entropy"])
def test_vocab_parallel_statistics_are_differentiable(name):
    def statistic(function):
        def run(*args, **options):
            return getattr(function(*args, **options), name)

        return run

    args = rows(sum(CHUNKS), "indices")
    actual = sharded(statistic(vocab_parallel_cross_entropy_with_stats), CHUNKS, *args)
    expected = unsharded(statistic(cross_entropy_with_stats), *args)
    assert_close(actual, (list(expected[0]), list(expected[1])))


@pytest.mark.parametrize(
    "row",
    [
        [-torch.inf] * 10,
        [torch.inf] + [0.0] * 9,
        [torch.nan] + [0.0] * 9,
        [-torch.inf] * 9 + [-300.0],
        [-1e4] * 3 + [1e4] * 7,
        [-torch.inf] * 3 + [-200.0] * 7,
    ],
    ids=["-inf", "inf", "nan", "one finite", "far apart", "rank of -inf"],
)
@pytest.mark.parametrize("target", [0, 9, -100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_vocab_parallel_loss_of_extreme_rows_is_the_unsharded_one(row, target, smoothing):
    logits = torch.tensor([row, [0.0] * 10], dtype=torch.double)
    args = (logits, torch.tensor([target, 1]))
    options = {"reduction": "none", "label_smoothing": smoothing}
    actual = sharded(vocab_parallel_cross_entropy, CHUNKS, *args, **options)
    expected = unsharded(cross_entropy, *args, **options)
    assert_close(actual, (list(expected[0]), list(expected[1])))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_vocab_parallel_loss_of_ignored_rows_is_the_unsharded_one(reduction):
    args = (torch.randn(3, 10, dtype=torch.double), torch.full((3,), -1))
    options = {"reduction": reduction, "ignore_index": -1, "z_loss": 0.1}
    actual = sharded(vocab_parallel_cross_entropy, CHUNKS, *args, **options)
    expected = unsharded(cross_entropy, *args, **options)
    assert_close(actual, (list(expected[0]), list(expected[1])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vocab_parallel_loss_is_as_accurate_as_torch(dtype, reduction):
    logits, target = rows(sum(CHUNKS), "indices", (64,), dtype)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    actual = sharded(vocab_parallel_cross_entropy, CHUNKS, logits, target, **options)
    baseline = unsharded(F.cross_entropy, logits, target, **options)
    exact = unsharded(F.cross_entropy, logits.double(), target, **options)
    for ours, torchs, truth in zip(
        (*actual[0], *actual[1]), (*baseline[0], *baseline[1]), (*exact[0], *exact[1]), strict=True
    ):
        assert_as_accurate_as_torch(ours, torchs, truth)


def test_vocab_parallel_loss_without_its_own_class_weight_is_zero():
    # a weight of 0 on a rank whose logits are all -inf: 0 times an infinite cost
    logits = torch.randn(4, 10, dtype=torch.double)
    logits[:, :3] = -torch.inf
    weight = torch.tensor([0.0] * 3 + [1.0] * 7, dtype=torch.double)
    args = (logits, torch.tensor([3, 5, 9, 4]), weight)
    actual = sharded(vocab_parallel_cross_entropy, CHUNKS, *args, label_smoothing=0.3)
    expected = unsharded(cross_entropy, *args, label_smoothing=0.3)
    assert_close(actual[0], list(expected[0]))
    assert_close(actual[1][0], expected[1][0])
