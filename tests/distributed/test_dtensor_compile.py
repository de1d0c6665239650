"""DTensors under torch.compile, with the collectives of a group of one rank."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import torch_softmax

TARGET = torch.tensor([0, 3, -100, 5])
IS_OLD = torch.__version__ < "2.14"


@pytest.fixture
def mesh(one_rank):
    torch._dynamo.reset()
    return init_device_mesh("cpu", (1,))


@pytest.mark.parametrize("placement", [Shard(1), Shard(0), Replicate()], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_dtensor_loss_compiles_to_one_graph(reduction, placement, mesh):
    def loss(logits):
        options = {"reduction": reduction, "label_smoothing": 0.1}
        return torch_softmax.cross_entropy(logits, TARGET, **options)

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        logits = distribute_tensor(torch.arange(24.0).view(4, 6).sin(), mesh, [placement])
        logits.requires_grad_()
        value = function(logits)
        value.sum().full_tensor().backward()
        results.append((value.full_tensor().detach(), logits.grad.full_tensor()))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("function", [torch_softmax.softmax, torch_softmax.log_softmax])
@pytest.mark.parametrize("placement", [Shard(1), Shard(0)], ids=str)
def test_dtensor_softmax_compiles_to_one_graph(function, placement, mesh):
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    if IS_OLD and placement.is_shard(1):
        with pytest.raises(RuntimeError, match=r"needs PyTorch 2\.14 or later"):
            compiled(distribute_tensor(torch.zeros(4, 6), mesh, [placement]), 1)
        return
    results = []
    for run in (function, compiled):
        logits = distribute_tensor(torch.arange(24.0).view(4, 6).sin(), mesh, [placement])
        logits.requires_grad_()
        y = run(logits, 1)
        y.square().sum().full_tensor().backward()
        results.append((y.full_tensor().detach(), logits.grad.full_tensor()))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.skipif(IS_OLD, reason="a compiled head of PyTorch 2.11 has placements of its own type")
def test_parallel_head_compiles_to_one_graph(mesh):
    head = nn.Linear(3, 6)
    parallelize_module(head, mesh, ColwiseParallel(use_local_output=False))

    def loss(x):
        return torch_softmax.cross_entropy(head(x), TARGET).full_tensor()

    x = torch.arange(12.0).view(4, 3).cos()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), loss(x))
    gradients = []
    for function in (loss, compiled):
        head.zero_grad()
        function(x).backward()
        gradients.append(head.weight.grad.full_tensor())
    torch.testing.assert_close(gradients[1], gradients[0])
