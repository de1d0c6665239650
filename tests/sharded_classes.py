"""Classes sharded across ranks that all run in this process, and what their losses should be."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch.distributed._local_tensor import LocalIntNode, LocalTensor, LocalTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

N_RANKS = 4
# classes of each rank: chunks of equal size, chunks that end early, other layouts
EQUAL, CHUNKS, ENDING = (3, 3, 3, 3), (3, 3, 3, 1), (2, 2, 1, 0)
UNEVEN = (4, 0, 1, 6)
# a layout with an empty shard stands for the others
LAYOUTS = [ENDING, UNEVEN] + [
    pytest.param(counts, marks=pytest.mark.exhaustive) for counts in (EQUAL, CHUNKS)
]
OPTIONS = {
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "mean": {},
    "smoothing": {"label_smoothing": 0.2},
    "all smoothing": {"label_smoothing": 1.0, "reduction": "none"},
    "z_loss": {"z_loss": 0.3},
    "softcap": {"softcap": 2.0},
    "logit_scale": {"logit_scale": -1.5, "reduction": "sum"},
    "denominator": {"denominator": 7.5},
    "all": {
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "softcap": 3.0,
        "logit_scale": 2.0,
        "denominator": 3,
    },
}


@contextmanager
def local_ranks(n_ranks=N_RANKS):
    """Run the ranks of one program in turn, each tensor of which holds those of all ranks."""
    dist.init_process_group("fake", rank=0, world_size=n_ranks, store=FakeStore())
    try:
        with LocalTensorMode(n_ranks) as mode:
            if torch.__version__ < "2.14" and not isinstance(dist.get_rank(), torch.SymInt):
                pytest.skip("needs a PyTorch whose simulated ranks know their number")
            yield mode
    finally:
        dist.destroy_process_group()


def shards(x, counts, dim=1):
    """``x`` on every rank, which holds ``counts`` of its classes."""
    parts = x.detach().split(counts, dim)
    return LocalTensor({rank: part.clone() for rank, part in enumerate(parts)})


def replicated(x, n_ranks=N_RANKS):
    """``x`` on every rank."""
    return LocalTensor({rank: x.clone() for rank in range(n_ranks)})


def offsets(counts):
    """The first class of each rank, as one number that differs between the ranks."""
    firsts = {rank: sum(counts[:rank]) for rank in range(len(counts))}
    return torch.SymInt(LocalIntNode(firsts))


def layout(counts):
    """What tells the function where the classes are: chunks need no offset."""
    n_classes, size = sum(counts), -(-sum(counts) // len(counts))
    is_chunked = all(
        count == max(0, min(size, n_classes - rank * size)) for rank, count in enumerate(counts)
    )
    offset = {} if is_chunked else {"class_offset": offsets(counts)}
    return {"num_classes": n_classes} | offset


def whole(x, dim=1):
    """The shards of all ranks side by side."""
    return torch.cat([x._local_tensors[rank] for rank in sorted(x._ranks)], dim)


def same_on_all_ranks(x):
    """The value of a tensor that has the same bits on every rank."""
    values = list(x._local_tensors.values()) if isinstance(x, LocalTensor) else [x]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=0, atol=0, equal_nan=True)
    return values[0]


def seeds_like(y):
    """A gradient of ``y`` with a different number for each element, of both signs."""
    return 1.5 * torch.arange(y.numel(), device=y.device).view(y.shape).cos().to(y) - 0.5


def unsharded(function, logits, target, weight=None, **options):
    """Results of a function of whole logits, and the gradients of its first result."""
    leaves = [
        x.detach().clone().requires_grad_()
        for x in (logits, target, weight)
        if x is not None and x.is_floating_point()
    ]
    rest = iter(leaves)
    args = [x if x is None or not x.is_floating_point() else next(rest) for x in (logits, target)]
    results = function(*args, None if weight is None else leaves[-1], **options)
    results = results if isinstance(results, tuple) else (results,)
    return results, torch.autograd.grad(results[0], leaves, seeds_like(results[0]))


def sharded(function, counts, logits, target, weight=None, **options):
    """The same of a function of shards, whose gradients it puts together."""
    with local_ranks(len(counts)):
        x = shards(logits, counts).requires_grad_()
        t = replicated(target, len(counts))
        if target.is_floating_point():
            t = shards(target, counts).requires_grad_()
        w = None if weight is None else shards(weight, counts, 0).requires_grad_()
        leaves = [y for y in (x, t, w) if y is not None and y.is_floating_point()]
        results = function(x, t, w, **layout(counts), **options)
        results = results if isinstance(results, tuple) else (results,)
        loss = results[0]
        gradients = torch.autograd.grad(loss, leaves, seeds_like(same_on_all_ranks(loss.detach())))
        values = [same_on_all_ranks(y.detach()) for y in results]
        return values, [whole(y, 0 if y.dim() == 1 else 1) for y in gradients]
