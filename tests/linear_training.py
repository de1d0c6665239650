"""Small language models: a head that is linear cross-entropy, or a linear layer and a loss."""

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import torch_softmax

N_CLASSES, N_FEATURES, N_STEPS = 13, 6, 4
# how the parameters are spread over the processes, and whether the head is the embedding
CASES = [(wrap, is_tied) for wrap in ("ddp", "fsdp") for is_tied in (False, True)]


class LinearThenLoss(nn.Module):
    """What users have: ``nn.Linear``, and the loss of its logits."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes, bias=False)

    def forward(self, input, target):
        return F.cross_entropy(self.linear(input).flatten(0, -2), target.flatten())


class NextToken(nn.Module):
    """Embedding, one layer, and a head that gives the loss."""

    def __init__(self, head, is_tied):
        super().__init__()
        self.embedding = nn.Embedding(N_CLASSES, N_FEATURES)
        self.layer = nn.Linear(N_FEATURES, N_FEATURES)
        self.head = head(N_FEATURES, N_CLASSES)
        if is_tied:
            self.head.linear.weight = self.embedding.weight

    def forward(self, tokens):
        x = torch.tanh(self.layer(self.embedding(tokens[:, :-1])))
        return self.head(x, tokens[:, 1:])


def spread(model, wrap):
    if wrap == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(model.layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(head, wrap, is_tied, rank):
    """Losses of a process, the parameters that all end with, and what the losses come from."""
    torch.manual_seed(0)
    model = spread(NextToken(head, is_tied), wrap)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses, functions = [], set()
    for step in range(N_STEPS):
        generator = torch.Generator().manual_seed(10 * step + rank)
        tokens = torch.randint(N_CLASSES, (2, 5), generator=generator)
        loss = model(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        functions.add(loss.grad_fn.name())
    whole = [y.full_tensor() if isinstance(y, DTensor) else y for y in model.parameters()]
    return losses, [y.detach().clone() for y in whole], functions


def train_in_process(rank, folder):
    """What each of two processes does: every case, with our head and with PyTorch's."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results = {
        (wrap, is_tied): [
            train(head, wrap, is_tied, rank) for head in (chunked_head, LinearThenLoss)
        ]
        for wrap, is_tied in CASES
    }
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def chunked_head(in_features, num_classes):
    return torch_softmax.LinearCrossEntropyLoss(in_features, num_classes, chunk_size=3)
