"""Derivatives of functions of DTensors where PyTorch loses them, and of ignored rows."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import torch_softmax
from sharded_classes import local_ranks, replicated, same_on_all_ranks

LOGITS = torch.randn(4, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([2, 0, 7, -100])


def row_losses(x, dim):
    return torch_softmax.cross_entropy(x, TARGET, reduction="none")


@pytest.mark.parametrize(
    ("function", "placement"),
    [
        (torch_softmax.softmax, Shard(0)),
        (torch_softmax.softmax, Shard(1)),
        (torch_softmax.log_softmax, Shard(1)),
        (row_losses, Shard(0)),
    ],
)
def test_dtensor_incoming_gradient_of_other_placements_has_derivatives(function, placement):
    def derivatives(x, distribute):
        y = function(x.requires_grad_(), 1)
        dy = distribute(torch.arange(1.0, 1 + y.numel(), dtype=torch.double).view(y.shape))
        (dx,) = torch.autograd.grad(y, x, dy.requires_grad_(), create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, dy))

    expected = derivatives(LOGITS.clone(), lambda dy: dy)
    with local_ranks():
        mesh = init_device_mesh("cpu", (4,))
        x = distribute_tensor(replicated(LOGITS), mesh, [placement])
        # whole rows on every rank, where the result is sharded
        actual = derivatives(x, lambda dy: distribute_tensor(replicated(dy), mesh, [Replicate()]))
        values = [same_on_all_ranks(gradient.full_tensor()) for gradient in actual]
    torch.testing.assert_close(values, list(expected))


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_dtensor_gradient_of_ignored_rows_alone_is_zero(weighted, placement, one_rank):
    mesh = init_device_mesh("cpu", (1,))
    logits = distribute_tensor(torch.randn(3, 4), mesh, [placement]).requires_grad_()
    weight = torch.rand(4) if weighted else None
    for function in (torch_softmax.cross_entropy, torch_softmax.cross_entropy_with_stats):
        result = function(logits, torch.full((3,), -100), weight)
        loss = result if function is torch_softmax.cross_entropy else result.loss
        assert loss.full_tensor().isnan()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient.full_tensor(), torch.zeros(3, 4))
