"""DTensors in processes that gloo connects: uneven shards, and a training."""

import pytest
import torch

from parallel_heads import PLACEMENTS, SHAPES, dtensor_problem, results_of_dtensors, train
from rank_processes import results_of_ranks
from torch_softmax import cross_entropy

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="needs a PyTorch with gloo"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of four ranks computed."""
    return results_of_ranks(tmp_path_factory.mktemp("dtensors"), 4, results_of_dtensors)


@pytest.mark.parametrize("placements", range(len(PLACEMENTS)), ids=map(str, PLACEMENTS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dtensor_processes_compute_the_unsharded_loss(shape, placements, results):
    logits, target, weight = dtensor_problem(shape)
    leaves = (logits.requires_grad_(), weight.requires_grad_())
    loss = cross_entropy(logits, target, weight, label_smoothing=0.1)
    expected = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    for losses, _ in results:
        actual = losses[shape, placements]
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(actual[0], results[0][0][shape, placements][0], rtol=0, atol=0)


def test_parallel_head_of_a_vocabulary_trains_to_the_losses_of_an_unsharded_one(results):
    expected = train()
    assert expected[-1] < expected[0] / 2
    for _, losses in results[:2]:
        torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)
