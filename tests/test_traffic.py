"""The bytes that the kernels ask of memory, counted under the interpreter: the floor of each."""

import pytest
import torch
from torch_softmax._kernels.tiling import cdiv
from triton.runtime.interpreter import InterpreterBuilder

import torch_softmax
from devices import INTERPRETER_OFF
from torch_softmax._ops import registration

pytestmark = INTERPRETER_OFF

# the target and its logit, coefficients and statistics, of each row and each of its blocks
BYTES_BESIDE_A_BLOCK = 64
SHORTEST_BLOCK = 8192
# at either end of a row the rest of a word, in each of at most three reads of it
BYTES_AT_THE_ENDS = 3 * 2 * 16

WHOLE, WALKED = 4096, 2**17


@pytest.fixture
def moved(monkeypatch):
    """Bytes that were loaded and stored so far: what masks leave of the tiles."""
    moved = {"load": 0, "store": 0}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def count(kind, pointers, mask):
        moved[kind] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8

    def counted_load(builder, pointers, mask, *args):
        count("load", pointers, mask)
        return load(builder, pointers, mask, *args)

    def counted_store(builder, pointers, value, mask, *args):
        count("store", pointers, mask)
        return store(builder, pointers, value, mask, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
    monkeypatch.setattr(registration, "INTERPRETED", True)
    return moved


def passes(moved, x):
    """How often the matrix was loaded and stored since the last call."""
    matrix, (n_rows, n_cols) = x.numel() * x.element_size(), x.shape
    blocks = cdiv(n_cols, SHORTEST_BLOCK)
    counts = []
    for kind, n_bytes in moved.items():
        count, beside = divmod(n_bytes, matrix)
        assert beside <= n_rows * (BYTES_AT_THE_ENDS + blocks * BYTES_BESIDE_A_BLOCK), kind
        counts.append(count)
        moved[kind] = 0
    return tuple(counts)


COLUMNS = pytest.mark.parametrize("n_cols", [WHOLE, WHOLE - 95, WALKED, WALKED - 95])
DTYPE = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


@COLUMNS
@DTYPE
@pytest.mark.parametrize("softmax", [torch_softmax.softmax, torch_softmax.log_softmax])
def test_traffic_of_softmax_is_the_floor(moved, softmax, dtype, n_cols):
    x = torch.randn(4, n_cols).to(dtype).requires_grad_()
    # the second read of a walked row finds it in the L2 cache
    reads = 1 if n_cols <= WHOLE else 2

    y = softmax(x, 1)
    forward = passes(moved, x)
    y.backward(torch.ones_like(y))
    backward = passes(moved, x)

    assert forward == (reads, 1)
    # the sum of log_softmax's gradient needs no y
    sums = 1 if softmax is torch_softmax.log_softmax else 2
    assert backward == (2 if reads == 1 else 2 + sums, 1)


@COLUMNS
@DTYPE
def test_traffic_of_cross_entropy_is_the_floor(moved, dtype, n_cols):
    logits = torch.randn(4, n_cols).to(dtype).requires_grad_()

    losses = torch_softmax.cross_entropy(logits, torch.arange(4), reduction="none")
    forward = passes(moved, logits)
    losses.backward(torch.ones_like(losses))
    backward = passes(moved, logits)

    assert forward == (1, 0)
    assert backward == (1, 1)


@COLUMNS
@DTYPE
def test_traffic_of_a_step_is_the_floor(moved, dtype, n_cols):
    logits = torch.randn(4, n_cols).to(dtype).requires_grad_()

    loss = torch_softmax.cross_entropy(logits, torch.arange(4))
    step = passes(moved, logits)
    # its factor is 1, and the gradient is there
    loss.backward()
    backward = passes(moved, logits)

    assert step == (1 if n_cols <= WHOLE else 2, 1)
    assert backward == (0, 0)


@DTYPE
def test_traffic_of_a_step_of_few_classes_is_the_floor(moved, dtype):
    logits = torch.randn(1000, 32).to(dtype).requires_grad_()

    torch_softmax.cross_entropy(logits, torch.arange(1000) % 32)

    assert passes(moved, logits) == (1, 1)
