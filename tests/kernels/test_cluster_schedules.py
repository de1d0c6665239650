"""Rows that a cluster of thread blocks holds: when, and that their arithmetic is that of others."""

import pytest
import torch
import torch.nn.functional as F
import triton
from torch_softmax._kernels.tiling import CLUSTER_COLS, cluster_tiling
from triton.backends.compiler import GPUTarget

from numerics import assert_as_accurate_as_torch
from torch_softmax import _launch
from torch_softmax._launch import clusters


@pytest.fixture
def in_clusters(kernel_device, monkeypatch):
    """A device that holds long rows in clusters; the interpreter stands for one."""
    if kernel_device.type == "cpu":
        monkeypatch.setattr(clusters, "enabled", True)
    elif not clusters.has_clusters(kernel_device):
        pytest.skip("needs Triton 3.9 and a GPU of compute capability 9.0 or later")
    return kernel_device


@pytest.mark.parametrize(
    ("version", "target", "expected"),
    [
        ("3.9.0", GPUTarget("cuda", 90, 32), True),
        ("3.10.0+git1234", GPUTarget("cuda", 120, 32), True),
        ("3.8.0", GPUTarget("cuda", 90, 32), False),
        ("3.9.0", GPUTarget("cuda", 89, 32), False),
        ("3.9.0", GPUTarget("hip", "gfx942", 64), False),
    ],
)
def test_clusters_need_a_recent_gpu_and_triton(monkeypatch, version, target, expected):
    monkeypatch.setattr(triton, "__version__", version)
    assert clusters.target_has_clusters(target) == expected


def test_clusters_are_not_the_choice_of_the_interpreter():
    assert torch.cuda.is_available() or not clusters.has_clusters(torch.device("cpu"))


@pytest.mark.parametrize(
    ("n_cols", "max_block_cols", "num_ctas"),
    [
        # the columns of each thread block rise once no more blocks are to be had
        (32769, 2 * CLUSTER_COLS, 4),
        (65536, 2 * CLUSTER_COLS, 4),
        (65537, 2 * CLUSTER_COLS, 8),
        (131072, CLUSTER_COLS, 8),
        (262144, 2 * CLUSTER_COLS, 8),
        (50257, CLUSTER_COLS // 2, 8),
        # short, long, and rows of a kernel that reads none twice
        (32768, 2 * CLUSTER_COLS, None),
        (131073, CLUSTER_COLS, None),
        (262145, 2 * CLUSTER_COLS, None),
        (65536, 0, None),
    ],
)
def test_clusters_have_blocks_that_hold_the_row(n_cols, max_block_cols, num_ctas):
    tiling = cluster_tiling(n_cols, max_block_cols)
    assert (tiling and tiling.num_ctas) == num_ctas
    if tiling:
        assert tiling.block_cols // tiling.num_ctas <= max_block_cols


def num_ctas(launches):
    return [(kernel.fn.__name__, options["num_ctas"]) for kernel, options in launches]


def softmax_and_gradient(x):
    y = _launch.launch_softmax_forward(x, 1, x.dtype)
    return y, _launch.launch_softmax_backward(y, y, 1, x.dtype)


@pytest.mark.parametrize(
    ("n_cols", "dtype", "expected"),
    [
        (65536, torch.bfloat16, [4, 4]),
        (50257, torch.bfloat16, [4, 8]),
        (131072, torch.float32, [8, 8]),
        # of the gradient a thread block holds two matrices, of a float64 nothing
        (262144, torch.bfloat16, [8, 1]),
        (65536, torch.float64, [1, 1]),
        (32768, torch.bfloat16, [1, 1]),
        # 16 bytes that heads and tails of the rows lead out of the tile
        (65535, torch.bfloat16, [1, 1]),
    ],
)
def test_clusters_hold_the_rows_of_softmax(in_clusters, launches, n_cols, dtype, expected):
    softmax_and_gradient(torch.randn(2, n_cols, device=in_clusters).to(dtype))
    assert [count for _, count in num_ctas(launches)] == expected


def test_clusters_hold_no_class_strided_rows(in_clusters, launches):
    softmax_and_gradient(torch.randn(65536, 2, device=in_clusters).T)
    assert num_ctas(launches)[0] == ("softmax_forward_online_kernel", 1)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_clusters_hold_the_rows_of_a_loss_for_its_gradient(in_clusters, launches, with_gradient):
    logits = torch.randn(2, 65536, device=in_clusters)
    target = torch.zeros(2, dtype=torch.int64, device=in_clusters)

    _launch.launch_cross_entropy_loss(logits, target, None, None, logits.dtype, with_gradient)

    schedules = ("cross_entropy_loss_online_kernel", 1), ("cross_entropy_loss_kernel", 4)
    assert num_ctas(launches) == [("weight_sum_kernel", 1), schedules[with_gradient]]


def test_clusters_can_be_turned_off(in_clusters, launches, monkeypatch):
    logits = torch.randn(2, 65536, device=in_clusters)
    target = torch.zeros(2, dtype=torch.int64, device=in_clusters)
    arguments = (logits, target, None, None, logits.dtype)
    expected = _launch.launch_cross_entropy_loss(*arguments)
    softmax_and_gradient(logits)
    launches.clear()
    monkeypatch.setattr(clusters, "enabled", False)

    actual = _launch.launch_cross_entropy_loss(*arguments)
    softmax_and_gradient(logits)

    assert {count for _, count in num_ctas(launches)} == {1}
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("n_cols", [40000, 50257, 65536, 128001, 151936, 262144])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_clusters_give_an_accurate_softmax(in_clusters, name, dtype, n_cols):
    x = torch.randn(2, n_cols, device=in_clusters).to(dtype)
    torchs = getattr(F, name)

    y = getattr(_launch, f"launch_{name}_forward")(x, 1, dtype)
    dy = torch.randn_like(y)
    dx = getattr(_launch, f"launch_{name}_backward")(dy, y, 1, dtype)

    results = []
    for input, upstream in ((x, dy), (x.double(), dy.double())):
        leaf = input.requires_grad_()
        result = torchs(leaf, 1)
        results.append((result.detach(), *torch.autograd.grad(result, leaf, upstream)))
    for actual, baseline, exact in zip((y, dx), *results, strict=True):
        assert_as_accurate_as_torch(actual, baseline, exact)


# a target in each stripe of 4096 columns, which the thread blocks take in turn, and at both ends
@pytest.mark.parametrize("n_cols", [50257, 65536])
@pytest.mark.parametrize("inplace", [False, True])
def test_clusters_find_each_target(in_clusters, n_cols, inplace):
    target = torch.arange(1, n_cols, 4095, device=in_clusters)
    target[-1] = n_cols - 1
    logits = torch.randn(len(target), n_cols, device=in_clusters, requires_grad=True)
    expected = F.cross_entropy(logits, target)
    expected_gradient = torch.autograd.grad(expected, logits)[0]
    arguments = (target, None, None, torch.float32)

    dlogits = logits.detach().clone()
    if inplace:
        loss = _launch.launch_cross_entropy_loss_inplace(dlogits, *arguments)
    else:
        loss, dlogits = _launch.launch_cross_entropy_loss(dlogits, *arguments)

    torch.testing.assert_close((loss, dlogits), (expected.detach(), expected_gradient))
