"""What linear cross-entropy costs: matrix products and memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.profiler import profile

import torch_softmax
from devices import needs_gpus
from linear_heads import loss_and_gradients, random_head
from torch_softmax._ops import linear_chunks
from torch_softmax.benchmark.memory import peak_bytes_on_cpu

N_ROWS, N_FEATURES, N_CLASSES = 64, 8, 32
ONE_PRODUCT = 2 * N_ROWS * N_FEATURES * N_CLASSES


def head(x_trains=True, weight_trains=True):
    x = torch.randn(N_ROWS, N_FEATURES, requires_grad=x_trains)
    weight = torch.randn(N_CLASSES, N_FEATURES, requires_grad=weight_trains)
    return x, weight, torch.randint(N_CLASSES, (N_ROWS,))


def products(tensors, **options):
    """Matrix products of a step, each of all rows counting 1."""
    with profile(with_flops=True) as profiler:
        loss = torch_softmax.linear_cross_entropy(*tensors, **options)
        if loss.requires_grad:
            loss.sum().backward()
    names = ("aten::mm", "aten::addmm")
    events = [event for event in profiler.function_events if event.name in names]
    return sum(event.flops for event in events) / ONE_PRODUCT


each_size = pytest.mark.parametrize("size", [None, 7])


@each_size
def test_linear_step_takes_only_the_products_of_the_gradients_that_are_needed(size):
    counted = {
        needed: products(head(*needed), chunk_size=size)
        for needed in ((False, False), (True, False), (False, True), (True, True))
    }
    assert counted == {
        (False, False): 1,
        (True, False): 2,
        (False, True): 2,
        (True, True): 3,
    }


def test_linear_losses_by_row_take_the_logits_once_more():
    assert products(head(), reduction="none") == 4
    assert products(head(False, False), reduction="none") == 1


@each_size
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_step_takes_no_products_of_ignored_rows(reduction, size):
    x, weight, target = head()
    of_all = products((x, weight, target), reduction=reduction, chunk_size=size)
    target[::4] = target[1::4] = -100
    assert products((x, weight, target), reduction=reduction, chunk_size=size) == of_all / 2
    target.fill_(-100)
    assert products((x, weight, target), reduction=reduction, chunk_size=size) == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_step_takes_a_fifth_of_the_memory_of_the_logits(reduction):
    x, weight = torch.randn(512, 8, requires_grad=True), torch.randn(2048, 8, requires_grad=True)
    target = torch.randint(2048, (512,))
    gradients = x.nbytes + weight.nbytes

    def ours():
        loss = torch_softmax.linear_cross_entropy(
            x, weight, target, reduction=reduction, chunk_size=32
        )
        return torch.autograd.grad(loss.sum(), (x, weight))

    def theirs():
        loss = F.cross_entropy(F.linear(x, weight), target, reduction=reduction)
        return torch.autograd.grad(loss.sum(), (x, weight))

    # before it is measured: what the first call keeps
    ours()
    peaks = [peak_bytes_on_cpu(step) - gradients for step in (ours, theirs)]
    assert peaks[0] <= peaks[1] / 5


@needs_gpus(1)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_step_of_a_given_chunk_size_never_waits_for_the_gpu(reduction):
    tensors = random_head(device="cuda")
    loss_and_gradients(*tensors, reduction=reduction, chunk_size=4)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradients(*tensors, reduction=reduction, chunk_size=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_linear_chunks_fill_the_memory_set_aside_and_are_equal():
    def sizes(n_rows, n_classes, chunk_size=None, device="cpu"):
        x, weight = torch.empty(n_rows, 1, device=device), torch.empty(n_classes, 1, device=device)
        linear_head = linear_chunks.LinearHead(x, weight, None, torch.float32)
        _, chunks = linear_chunks.chunks(linear_head, None, chunk_size)
        return [len(chunk.x) for chunk in chunks]

    # 32 MiB hold 262 rows
    assert sizes(262, 32_000) == [262]
    assert sizes(263, 32_000) == [132, 131]
    # on a GPU no fewer rows than the weights are worth reading for, even past 1 GiB
    assert sizes(2049, 2**20, device="meta") == [1025, 1024]
    assert sizes(5, 10, chunk_size=2) == [2, 2, 1]
    assert sizes(0, 10) == []
