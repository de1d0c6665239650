"""Heads that are sharded over the ranks of a mesh, for the processes of tests/distributed."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import torch_softmax

VOCABULARY, STEPS = 50_257, 50
# uneven shards of classes and rows, and ranks without any
PLACEMENTS = [[Shard(1)], [Shard(0)], [Replicate()], [Shard(0), Shard(1)], [Shard(1), Shard(0)]]
SHAPES = [(7, 10), (5, 5), (2, 3)]


def dtensor_problem(shape):
    """Logits, targets and class weights, the same on every rank."""
    random = torch.Generator().manual_seed(shape[1])
    logits = 3 * torch.randn(shape, dtype=torch.double, generator=random)
    target = torch.arange(shape[0]) * 3 % shape[1]
    target[1] = -100
    weight = torch.rand(shape[1], dtype=torch.double, generator=random) + 0.5
    return logits, target, weight


def losses_of_dtensors():
    """Loss and gradients, also that of the class weights, of every shape and placement."""
    results = {}
    for shape in SHAPES:
        for i, placements in enumerate(PLACEMENTS):
            mesh = init_device_mesh("cpu", (4,) if len(placements) == 1 else (2, 2))
            logits, target, weight = dtensor_problem(shape)
            logits = distribute_tensor(logits, mesh, placements).requires_grad_()
            weight = distribute_tensor(weight, mesh, [Replicate()] * mesh.ndim).requires_grad_()
            loss = torch_softmax.cross_entropy(logits, target, weight, label_smoothing=0.1)
            gradients = torch.autograd.grad(loss, (logits, weight))
            results[shape, i] = [y.full_tensor().detach() for y in (loss, *gradients)]
    return results


class LanguageModel(nn.Module):
    """An embedding and a head with as many classes as a tokenizer has."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8, dtype=torch.double)
        self.head = nn.Linear(8, VOCABULARY, dtype=torch.double)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def train(mesh=None):
    """The losses of a model that learns the next of some tokens, sharded if there is a mesh."""
    torch.manual_seed(0)
    model = LanguageModel()
    if mesh is not None:
        parallelize_module(model, mesh, {"head": ColwiseParallel(use_local_output=False)})
    # the tokens' classes are spread over all shards
    tokens, target = torch.arange(50), torch.arange(50) * 1025
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0, foreach=False)
    losses = []
    for _ in range(STEPS):
        loss = torch_softmax.cross_entropy(model(tokens), target, z_loss=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss if mesh is None else loss.full_tensor())
    return torch.stack(losses).detach()
