"""Class-sharded losses in processes that gloo connects."""

import pytest
import torch

from parallel_heads import PLACEMENTS, SHAPES, dtensor_problem, train
from rank_processes import results_of_ranks, run_ranks
from rank_programs import (
    LAYOUTS,
    all_results,
    cases,
    linear_problem,
    loss_that_one_rank_never_joins,
    loss_that_one_rank_sleeps_through,
    penalized_gradient,
    problem,
)
from sharded_classes import OPTIONS, UNEVEN
from torch_softmax import cross_entropy, linear_cross_entropy

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="needs a PyTorch with gloo"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of four ranks computed."""
    return results_of_ranks(tmp_path_factory.mktemp("cases"), 4, all_results)


@pytest.mark.parametrize("counts", LAYOUTS, ids=str)
def test_processes_agree_to_the_bit(counts, results):
    for case in cases():
        if case[0] == counts:
            first, *others = (results[rank]["cases"][case][0] for rank in range(len(counts)))
            for other in others:
                torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.parametrize("counts", LAYOUTS, ids=str)
def test_processes_compute_the_unsharded_losses_and_gradients(counts, results):
    for case in cases():
        if case[0] != counts:
            continue
        _, name, kind, weighted = case
        args = problem(counts, kind, weighted)
        leaves = [x.requires_grad_() for x in args if x is not None and x.is_floating_point()]
        loss = cross_entropy(*args, **OPTIONS[name])
        expected = torch.autograd.grad(loss.sum(), leaves)
        actual = [results[rank]["cases"][case] for rank in range(len(counts))]
        torch.testing.assert_close(actual[0][0], loss.detach(), rtol=1e-10, atol=1e-10)
        for i, gradient in enumerate(expected):
            whole = torch.cat([gradients[i] for _, gradients in actual], -1)
            torch.testing.assert_close(whole, gradient, rtol=1e-10, atol=1e-10)


def test_processes_gather_twice_until_they_know_uneven_shards(results):
    other = (*UNEVEN[:-1], UNEVEN[-1] + 1)
    expected = cross_entropy(*problem(other, "indices", False)[:2])
    for result in results:
        counts, loss = result["collectives"]
        assert counts == [2, 1, 1]
        torch.testing.assert_close(loss, expected)


def test_processes_compute_the_unsharded_second_derivative(results):
    whole = torch.cat([result["penalty"] for result in results], 1)
    expected = penalized_gradient(cross_entropy)
    torch.testing.assert_close(whole, expected, rtol=1e-10, atol=1e-10)


def test_processes_compute_the_unsharded_linear_loss(results):
    x, linear_weight, target = linear_problem()
    leaves = (x.requires_grad_(), linear_weight.requires_grad_())
    loss = linear_cross_entropy(*leaves, target, label_smoothing=0.1)
    dx, dweight = torch.autograd.grad(loss, leaves)
    ranks = [result["linear"] for result in results]
    for value, gradient, _ in ranks:
        torch.testing.assert_close(value, ranks[0][0], rtol=0, atol=0)
        torch.testing.assert_close(value, loss.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, dx, rtol=1e-10, atol=1e-10)
    whole = torch.cat([gradient for _, _, gradient in ranks])
    torch.testing.assert_close(whole, dweight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("placements", range(len(PLACEMENTS)), ids=map(str, PLACEMENTS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dtensor_processes_compute_the_unsharded_loss(shape, placements, results):
    logits, target, weight = dtensor_problem(shape)
    leaves = (logits.requires_grad_(), weight.requires_grad_())
    loss = cross_entropy(logits, target, weight, label_smoothing=0.1)
    expected = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    ranks = [result["dtensors"][shape, placements] for result in results]
    for actual in ranks:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(actual[0], ranks[0][0], rtol=0, atol=0)


def test_parallel_head_of_a_vocabulary_trains_to_the_losses_of_an_unsharded_one(results):
    expected = train()
    assert expected[-1] < expected[0] / 2
    for result in results[:2]:
        torch.testing.assert_close(result["training"], expected, rtol=1e-10, atol=1e-10)


def test_processes_end_when_one_fails_before_its_loss(tmp_path):
    *waiting, failed = run_ranks(tmp_path, 2, loss_that_one_rank_never_joins)
    assert "this rank fails" in failed.errors
    for process in waiting:
        assert process.code
        assert "RuntimeError: [" in process.errors
        assert process.seconds < 60


def test_processes_end_when_one_never_calls_its_loss(tmp_path):
    *waiting, _ = run_ranks(tmp_path, 2, loss_that_one_rank_sleeps_through, waits_for=1)
    for process in waiting:
        assert process.code
        assert "RuntimeError: [" in process.errors
        assert process.seconds < 60
