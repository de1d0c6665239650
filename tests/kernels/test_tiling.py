import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch_softmax._kernels.tiles import Matrix
from torch_softmax._kernels.tiling import MAX_TILE_BYTES, cdiv, next_power_of_2, row_tiling

import torch_softmax
from numerics import assert_as_accurate_as_torch
from torch_softmax import _launch, _ops
from torch_softmax._launch import clusters
from torch_softmax._options import LossOptions

ROOT = Path(__file__).parents[2]
LAUNCHERS = [module for name, module in sys.modules.items() if name.startswith(_launch.__name__)]

# elements: a stride that fits into 32 bits, so that Triton passes it in as many, but not twice
FAR = 2**30 + 8
GUARD_ELEMENTS = 4096
CANARY = 7


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    # of the weight_sum kernel None
    tile: Any

    @property
    def matrices(self):
        tensors = [arg.ptr for arg in self.args if isinstance(arg, Matrix)]
        largest = max(tensor.numel() for tensor in tensors)
        return [tensor for tensor in tensors if tensor.numel() == largest]


class RecordingKernel:
    """Stands in a launcher for a kernel, and launches it."""

    def __init__(self, name, kernel, launches):
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.launches.append(Launch(self.name, grid, args, kwargs.get("TILE")))
            self.kernel[grid](*args, **kwargs)

        return launch


@pytest.fixture(autouse=True)
def schedules_of_every_gpu(monkeypatch):
    """A GPU with clusters reads long rows block by block too."""
    monkeypatch.setattr(clusters, "enabled", False)


@pytest.fixture
def launches(monkeypatch):
    """The launches of the test so far."""
    launches = []
    for launcher in LAUNCHERS:
        # plans keep their kernels
        if hasattr(launcher, "_plans"):
            monkeypatch.setattr(launcher, "_plans", {})
        for name, kernel in list(vars(launcher).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(launcher, name, RecordingKernel(name, kernel, launches))
    yield launches
    # they hold the memory of their arguments
    launches.clear()


@pytest.fixture
def guarded_buffers(monkeypatch):
    """The buffers, known values at either end, inside which torch.empty allocates in the test."""
    buffers = []

    def guarded(allocate):
        def empty(*args, **kwargs):
            plain = allocate(*args, **kwargs)
            if plain.is_meta:
                return plain
            n_elements = plain.untyped_storage().nbytes() // plain.element_size()
            buffer = plain.new_full((n_elements + 2 * GUARD_ELEMENTS,), CANARY)
            buffers.append(buffer)
            inner = buffer.as_strided(plain.shape, plain.stride(), GUARD_ELEMENTS)
            return inner.copy_(plain)

        return empty

    monkeypatch.setattr(torch, "empty", guarded(torch.empty))
    monkeypatch.setattr(torch, "empty_like", guarded(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", guarded(torch.Tensor.new_empty))
    return buffers


@pytest.fixture
def far_results(monkeypatch):
    """Lay results out as the launchers' arguments are, where they would be made contiguous."""

    def empty_strided_like(x, dtype=None):
        return torch.empty_strided(x.shape, x.stride(), dtype=dtype or x.dtype, device=x.device)

    for launcher in LAUNCHERS:
        for name in ("empty_rows_like", "empty_contiguous_like"):
            monkeypatch.setattr(launcher, name, empty_strided_like, raising=False)
    # memory that nobody touches costs nothing, and to poison it would touch gigabytes
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


def classes(x):
    rows = x[:, 0]
    return (torch.arange(rows.numel(), device=x.device) % x.shape[1]).view(rows.shape)


def probabilities(x):
    """Half for a class and half for the next, exact in every dtype, laid out as ``x`` is."""
    chosen = F.one_hot(classes(x), x.shape[1]).movedim(-1, 1)
    target = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return target.copy_((chosen + chosen.roll(1, 1)) / 2)


class Operation(NamedTuple):
    ours: Any
    torchs: Any
    kernels: tuple[str, ...]
    kernels_of_long_rows: tuple[str, ...]


def through_autograd(function):
    return lambda x: value_and_gradient(function, x)


def row_losses(x, target, **options):
    """A loss per row by the kernels of rows, which serve statistics and long rows."""
    options = LossOptions(reduction="none", **options)
    args = (x.movedim(1, -1), target, None, None, options, x.dtype)
    return _ops.cross_entropy_with_rows(*args, with_entropy=False, inplace=False)[0]


def launched_loss(make_target):
    """The loss kernels, whose gradient comes with the loss."""

    def loss_and_gradient(x):
        target = make_target(x)
        target = target.movedim(1, -1) if target.shape == x.shape else target
        options = (None, None, x.dtype, True, -100, "mean", 0.1)
        loss, dlogits = _launch.launch_cross_entropy_loss(x.movedim(1, -1), target, *options)
        return loss, dlogits.movedim(-1, 1)

    return loss_and_gradient


SOFTMAX_KERNELS = (
    ("softmax_forward_kernel", "softmax_backward_kernel"),
    ("softmax_forward_online_kernel", "softmax_backward_online_kernel"),
)
# these read all rows block by block, most of them in one block
CROSS_ENTROPY_KERNELS = ("cross_entropy_forward_kernel", "cross_entropy_backward_kernel")
LOSS_KERNELS = (("cross_entropy_loss_kernel",), ("cross_entropy_loss_online_kernel",))
OPERATIONS = {
    "softmax": Operation(
        through_autograd(lambda x: torch_softmax.softmax(x, 1)),
        lambda x: F.softmax(x, 1),
        *SOFTMAX_KERNELS,
    ),
    "log_softmax": Operation(
        through_autograd(lambda x: torch_softmax.log_softmax(x, 1)),
        lambda x: F.log_softmax(x, 1),
        *SOFTMAX_KERNELS,
    ),
    "cross_entropy": Operation(
        through_autograd(lambda x: row_losses(x, classes(x))),
        lambda x: F.cross_entropy(x, classes(x), reduction="none"),
        CROSS_ENTROPY_KERNELS,
        CROSS_ENTROPY_KERNELS,
    ),
    "probability_cross_entropy": Operation(
        through_autograd(
            lambda x: row_losses(x, probabilities(x).movedim(1, -1), label_smoothing=0.1)
        ),
        lambda x: F.cross_entropy(x, probabilities(x), reduction="none", label_smoothing=0.1),
        CROSS_ENTROPY_KERNELS,
        CROSS_ENTROPY_KERNELS,
    ),
    "loss": Operation(
        launched_loss(classes),
        lambda x: F.cross_entropy(x, classes(x), label_smoothing=0.1),
        *(("weight_sum_kernel", *kernels) for kernels in LOSS_KERNELS),
    ),
    "probability_loss": Operation(
        launched_loss(probabilities),
        # one loss for each row, as here, and not for each image
        lambda x: F.cross_entropy(
            x, probabilities(x), label_smoothing=0.1, reduction="none"
        ).mean(),
        *LOSS_KERNELS,
    ),
}
OPERATION = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def value_and_gradient(function, x):
    """Result, and gradient of its sum with weights from -1 to 1, laid out as the result is.

    Their signs alternate: a sum in which thousands cancel thousands would measure its order alone.
    """
    x = x.detach().requires_grad_()
    y = function(x)
    dy = torch.empty_strided(y.shape, y.stride(), dtype=y.dtype, device=y.device)
    dy.copy_(torch.arange(y.numel(), dtype=torch.double).cos().view(y.shape))
    y.backward(dy)
    return y.detach(), x.grad


def assert_accurate(operation, actual, x):
    baselines = value_and_gradient(operation.torchs, x)
    exacts = value_and_gradient(operation.torchs, x.double())
    for value, baseline, exact in zip(actual, baselines, exacts, strict=True):
        assert_as_accurate_as_torch(value, baseline, exact)


@pytest.mark.parametrize(
    ("n_rows", "n_cols", "class_strided", "rows_together", "in_blocks"),
    [
        (60000, 10, False, True, False),
        (1, 10, False, False, False),
        (4096, 4096, False, False, False),
        (4096, 50257, False, False, True),
        (4096, 4, True, True, False),
        (4096, 19, True, True, True),
        (4096, 50257, True, True, True),
        (1, 50257, True, False, True),
    ],
)
def test_tiling_suits_the_shape(n_rows, n_cols, class_strided, rows_together, in_blocks):
    tiling = row_tiling(n_rows, n_cols, live_bytes=4, class_strided=class_strided)
    assert (tiling.block_rows > 1) == rows_together
    assert (tiling.block_cols < n_cols) == in_blocks


@given(
    n_rows=st.integers(1, 2**40),
    n_cols=st.integers(1, 2**40),
    live_bytes=st.integers(1, 8).map(lambda values: 4 * values),
    class_strided=st.booleans(),
)
def test_tiling_stays_within_bounds(n_rows, n_cols, live_bytes, class_strided):
    tiling = row_tiling(n_rows, n_cols, live_bytes, class_strided=class_strided)
    for size in tiling:
        assert size == next_power_of_2(size)
    assert 1 <= tiling.block_rows <= next_power_of_2(n_rows)
    assert 1 <= tiling.block_cols <= next_power_of_2(n_cols)
    assert tiling.block_rows * tiling.block_cols * live_bytes <= MAX_TILE_BYTES
    assert 2 <= tiling.num_warps <= 32


@given(numerator=st.integers(0, 2**40), denominator=st.integers(1, 2**40))
def test_tiling_counts_the_last_block_too(numerator, denominator):
    assert cdiv(numerator, denominator) == math.ceil(numerator / denominator)


@given(n=st.integers(1, 2**40))
def test_tiling_rounds_up_to_the_nearest_power_of_2(n):
    power = next_power_of_2(n)
    assert power.bit_count() == 1
    assert power // 2 < n <= power


def test_tiling_needs_neither_triton_nor_torch():
    # under the folder's own name: the package around the installed one imports torch
    code = "import sys, triton_kernels.tiling; print(*{'torch', 'triton'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert process.stdout.strip() == ""


@OPERATION
@pytest.mark.parametrize(
    ("shape", "rows_together", "in_blocks"),
    [
        pytest.param((500, 10), True, False, id="short rows"),
        # in blocks where a kernel holds more for each element
        pytest.param((4, 4000), False, None, id="a row to a program"),
        pytest.param((2, 40000), False, True, id="long rows"),
        pytest.param((2, 2**16 + 3), False, True, id="many blocks, three columns in the last"),
        pytest.param((2, 4, 8, 8), True, False, id="class-strided"),
        pytest.param((2, 300, 4, 8), True, True, id="class-strided long rows"),
    ],
)
def test_tiling_reaches_the_schedule(
    kernel_device, launches, operation, shape, rows_together, in_blocks
):
    x = torch.randn(shape, device=kernel_device)

    actual = operation.ours(x)

    kernels = operation.kernels_of_long_rows if in_blocks else operation.kernels
    assert tuple(launch.kernel for launch in launches) == kernels
    for launch in launches:
        if launch.tile is not None:
            assert (launch.tile.rows > 1) == rows_together
            assert in_blocks in (None, launch.tile.cols < shape[1])
    assert_accurate(operation, actual, x)


def test_tiling_of_short_rows_launches_few_programs(kernel_device, launches):
    operation = OPERATIONS["cross_entropy"]
    logits = torch.randn(15000, 10, device=kernel_device)

    actual = operation.ours(logits)

    # the interpreter takes a millisecond for each
    assert sum(math.prod(launch.grid) for launch in launches) <= 250
    assert tuple(launch.kernel for launch in launches) == CROSS_ENTROPY_KERNELS
    assert_accurate(operation, actual, logits)


@OPERATION
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((3, 10), (FAR, 1), id="rows"),
        pytest.param((10, 3), (1, FAR), id="classes"),
        pytest.param((3, 3, 4), (FAR, 4, 1), id="outer"),
    ],
)
@pytest.mark.usefixtures("gigabytes")
def test_tiling_reaches_beyond_32_bit_offsets(
    kernel_device, launches, far_results, operation, shape, strides
):
    x = torch.empty_strided(shape, strides, dtype=torch.float16, device=kernel_device)
    x.copy_(torch.randn(shape))

    actual = operation.ours(x)

    # one program adds the weights of its rows itself
    launched, kernels = (
        [name for name in names if name != "weight_sum_kernel"]
        for names in ([launch.kernel for launch in launches], operation.kernels)
    )
    assert len(launched) == len(kernels)
    for launch in launches:
        if launch.tile is not None:
            assert all(max(matrix.stride()) >= FAR for matrix in launch.matrices)
    assert_accurate(operation, actual, x.contiguous())


@OPERATION
@pytest.mark.parametrize(
    "shape",
    [
        # tiles that the rows, the columns, and both do not fill
        (7, 16),
        (4, 2003),
        (7, 10),
        (2, 40003),
        (2, 19, 3, 3),
        (1, 2500, 3, 5),
    ],
)
def test_tiling_writes_nothing_beside_the_results(kernel_device, guarded_buffers, operation, shape):
    x = torch.randn(shape, device=kernel_device)
    before = x.clone()

    y, dx = operation.ours(x)

    assert len(guarded_buffers) >= 2
    for buffer in guarded_buffers:
        assert (buffer[:GUARD_ELEMENTS] == CANARY).all()
        assert (buffer[-GUARD_ELEMENTS:] == CANARY).all()
    assert torch.equal(x, before)
    assert y.isfinite().all() and dx.isfinite().all()
