"""What the processes of tests/distributed run, each on its own rank."""

import datetime
import itertools
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode

from parallel_heads import losses_of_dtensors, train
from sharded_classes import OPTIONS, UNEVEN
from torch_softmax.distributed import (
    vocab_parallel_cross_entropy,
    vocab_parallel_linear_cross_entropy,
)

# the classes of two, three and four ranks: equal and uneven, also without any
LAYOUTS = [(3, 3), (7, 0), (2, 5, 3), (0, 4, 1), (3, 3, 3, 3), UNEVEN]


def problem(counts, kind, weighted):
    """Logits, targets and class weights of all ranks, the same on each."""
    random = torch.Generator().manual_seed(sum(counts))
    n_classes = sum(counts)
    logits = 3 * torch.randn(6, n_classes, dtype=torch.double, generator=random)
    target = torch.tensor([0, n_classes - 1, -100, 1, 2, 0])
    if kind == "probabilities":
        target = torch.rand(6, n_classes, dtype=torch.double, generator=random).softmax(1)
    weight = torch.rand(n_classes, dtype=torch.double, generator=random) + 0.5
    return logits, target, weight if weighted else None


def cases():
    """Every layout with every option; kinds of targets and class weights in turn."""
    targets = itertools.cycle(itertools.product(("indices", "probabilities"), (False, True)))
    for counts in LAYOUTS:
        for name in OPTIONS:
            yield counts, name, *next(targets)
        # each option meets another target on the next layout
        next(targets)


def all_results():
    """What each program returned, by name."""
    mesh = DeviceMesh("cpu", [0, 1])
    return {
        "cases": losses_of_cases(),
        "collectives": collectives_of_three_steps(),
        "penalty": penalized_gradient(vocab_parallel_cross_entropy),
        "linear": linear_loss(),
        "dtensors": losses_of_dtensors(),
        "training": train(mesh) if dist.get_rank() < 2 else None,
    }


def losses_of_cases():
    """The loss of each case, and the gradients of this rank's shards; the ranks tell the layout."""
    rank = dist.get_rank()
    groups = {n_ranks: dist.new_group(range(n_ranks)) for n_ranks in (2, 3, 4)}
    results = {}
    for case in cases():
        counts, name, kind, weighted = case
        if rank >= len(counts):
            continue
        args = [
            x.split(counts, -1)[rank].clone().requires_grad_()
            if x is not None and x.is_floating_point()
            else x
            for x in problem(counts, kind, weighted)
        ]
        loss = vocab_parallel_cross_entropy(*args, group=groups[len(counts)], **OPTIONS[name])
        leaves = [x for x in args if x is not None and x.is_floating_point()]
        results[case] = (loss.detach(), torch.autograd.grad(loss.sum(), leaves))
    return results


class Collectives(TorchDispatchMode):
    """Counts collectives as CommDebugMode does, whose import takes as long as that of PyTorch."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_functional = func.namespace == "_c10d_functional"
        self.count += is_functional and func._opname not in ("wait_tensor", "_wrap_tensor_autograd")
        return func(*args, **(kwargs or {}))


def collectives_of_three_steps():
    """The collectives of three steps on uneven shards whose layout no argument tells."""
    rank = dist.get_rank()
    logits, target, _ = problem(UNEVEN, "indices", False)
    counts = []
    for _ in range(3):
        x = logits.split(UNEVEN, 1)[rank].clone().requires_grad_()
        with Collectives() as collectives:
            vocab_parallel_cross_entropy(x, target).backward()
        counts.append(collectives.count)
    # another head, of whose ranks the first ones hold as many classes
    other = (*UNEVEN[:-1], UNEVEN[-1] + 1)
    logits, target, _ = problem(other, "indices", False)
    loss = vocab_parallel_cross_entropy(logits.split(other, 1)[rank], target)
    return counts, loss


def penalized_gradient(function):
    """The gradient of a loss with a penalty of its gradient, where a rank may have no classes."""
    logits, target, _ = problem(UNEVEN, "indices", False)
    counts = UNEVEN if dist.is_initialized() else (sum(UNEVEN),)
    rank = dist.get_rank() if dist.is_initialized() else 0
    x = logits.split(counts, 1)[rank].clone().requires_grad_()
    loss = function(x, target, label_smoothing=0.1, z_loss=0.1)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(loss + gradient.square().sum(), x)[0]


def linear_problem():
    """Features, weight and targets of a head with the classes of UNEVEN."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.double, generator=random)
    linear_weight = torch.randn(sum(UNEVEN), 3, dtype=torch.double, generator=random)
    return x, linear_weight, torch.tensor([0, sum(UNEVEN) - 1, -100, 1, 2, 0])


def linear_loss():
    """A loss in chunks of two rows, and the gradients of features and of this rank's weight."""
    x, linear_weight, target = linear_problem()
    shard = linear_weight.split(UNEVEN)[dist.get_rank()].clone().requires_grad_()
    x.requires_grad_()
    options = {"chunk_size": 2, "label_smoothing": 0.1}
    loss = vocab_parallel_linear_cross_entropy(x, shard, target, **options)
    return loss.detach(), *torch.autograd.grad(loss, (x, shard))


def loss_that_one_rank_never_joins():
    """The last rank raises before its loss."""
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("this rank fails")
    return vocab_parallel_cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


def loss_that_one_rank_sleeps_through():
    """The last rank is alive and never calls its loss."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=3))
    if dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(600)
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    return vocab_parallel_cross_entropy(logits, target, group=group)
