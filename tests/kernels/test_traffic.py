"""The bytes that the kernels load and store, counted in the interpreter, against the floor."""

import pytest
import torch
from torch_softmax._kernels.tiling import cdiv
from triton.runtime.interpreter import InterpreterBuilder

from devices import INTERPRETER_OFF
from torch_softmax import _launch
from torch_softmax._launch import clusters

pytestmark = INTERPRETER_OFF

# the target and its logit, coefficients and statistics, of each row and each of its blocks
BYTES_BESIDE_A_BLOCK = 64
SHORTEST_BLOCK = 8192
# the rest of a vector at both ends of a row, in each of at most three reads of the row
BYTES_AT_THE_ENDS = 3 * 2 * 16

ONE_TILE, ONLINE = 4096, 2**17


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


@pytest.fixture
def cluster_schedules(monkeypatch):
    """The schedules of a GPU with clusters."""
    monkeypatch.setattr(clusters, "enabled", True)


COLUMNS = pytest.mark.parametrize("n_cols", [ONE_TILE, ONE_TILE - 95, ONLINE, ONLINE - 95])
DTYPE = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


@COLUMNS
@DTYPE
@pytest.mark.parametrize("operator", ["softmax", "log_softmax"])
def test_traffic_of_softmax_is_the_floor(moved, operator, dtype, n_cols):
    x = torch.randn(2, n_cols).to(dtype)
    # the second read of an online row finds it in the L2 cache
    reads = 1 if n_cols <= ONE_TILE else 2

    y = getattr(_launch, f"launch_{operator}_forward")(x, 1, dtype)
    forward = passes(moved, x)
    getattr(_launch, f"launch_{operator}_backward")(torch.ones_like(y), y, 1, dtype)
    backward = passes(moved, x)

    assert forward == (reads, 1)
    # the sum of log_softmax's gradient needs no y
    sums = 1 if operator == "log_softmax" else 2
    assert backward == (2 if reads == 1 else 2 + sums, 1)


# the widest rows, and unaligned ones; gradients of softmax are held to 131072 columns
@pytest.mark.usefixtures("cluster_schedules")
@pytest.mark.parametrize("n_cols", [ONLINE, ONLINE - 95, 2 * ONLINE])
@DTYPE
@pytest.mark.parametrize("operator", ["softmax", "log_softmax"])
def test_traffic_of_softmax_in_clusters_is_one_read(moved, operator, dtype, n_cols):
    x = torch.randn(2, n_cols).to(dtype)

    y = getattr(_launch, f"launch_{operator}_forward")(x, 1, dtype)

    assert passes(moved, x) == (1, 1)
    if n_cols == ONLINE:
        getattr(_launch, f"launch_{operator}_backward")(torch.ones_like(y), y, 1, dtype)
        assert passes(moved, x) == (2, 1)


@COLUMNS
@DTYPE
def test_traffic_of_cross_entropy_is_the_floor(moved, dtype, n_cols):
    logits = torch.randn(2, n_cols).to(dtype)
    options = (1.0, None)

    rows = _launch.launch_cross_entropy_forward(logits, torch.arange(2), None, *options, False)
    forward = passes(moved, logits)
    coefficients = (rows.softmax_stats, rows.nll, rows.nll, None, None)
    _launch.launch_cross_entropy_backward(logits, torch.arange(2), None, *coefficients, *options)
    backward = passes(moved, logits)

    assert forward == (1, 0)
    assert backward == (1, 1)


def launch_loss(logits, target):
    return _launch.launch_cross_entropy_loss(logits, target, None, None, torch.float32, True)


@COLUMNS
@DTYPE
def test_traffic_of_a_loss_and_its_gradient_is_the_floor(moved, dtype, n_cols):
    logits = torch.randn(2, n_cols).to(dtype)

    _loss, dlogits = launch_loss(logits, torch.arange(2))
    loss_and_gradient = passes(moved, logits)
    _launch.launch_scale_inplace(dlogits, torch.ones(()))
    factor_of_1 = passes(moved, logits)

    assert loss_and_gradient == (1 if n_cols <= ONE_TILE else 2, 1)
    assert factor_of_1 == (0, 0)


@pytest.mark.usefixtures("cluster_schedules")
@pytest.mark.parametrize("n_cols", [ONLINE, ONLINE - 95, 2 * ONLINE])
@DTYPE
def test_traffic_of_a_loss_and_its_gradient_in_clusters_is_one_read(moved, dtype, n_cols):
    logits = torch.randn(2, n_cols).to(dtype)

    launch_loss(logits, torch.arange(2))

    assert passes(moved, logits) == (1, 1)


@COLUMNS
@DTYPE
def test_traffic_of_a_loss_of_probabilities_is_the_floor(moved, dtype, n_cols):
    logits = torch.randn(2, n_cols).to(dtype)

    launch_loss(logits, logits.softmax(1))

    # the logits and the probabilities
    assert passes(moved, logits) == (2 if n_cols <= ONE_TILE else 4, 1)


@DTYPE
def test_traffic_of_a_loss_of_few_classes_is_the_floor(moved, dtype):
    logits = torch.randn(1000, 32).to(dtype)

    launch_loss(logits, torch.arange(1000) % 32)

    assert passes(moved, logits) == (1, 1)
