"""Vectorized accesses to rows that do not start at multiples of 16 bytes."""

import pytest
import torch
from torch_softmax._kernels.tiling import MIN_VECTORS, vec_size

from torch_softmax import _launch
from torch_softmax._launch.schedule import Limits, Rows

VEC_SIZES = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 4, torch.float64: 2}
# NaN around every row, to detect reads that reach a sum, and writes outside a row
BESIDE = float("nan")
LIMITS = Limits(live_values=1)


def rows_in_storage(shape, row_stride, start, dtype, device):
    """Random rows that begin ``start`` elements into their storage, and the storage."""
    n_rows, _ = shape
    storage = torch.full((start + n_rows * row_stride + 64,), BESIDE, dtype=dtype, device=device)
    rows = storage.as_strided(shape, (row_stride, 1), start)
    return rows.copy_(torch.randn(shape)), storage


def gradient_of(y):
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device)
    # log_softmax multiplies their sum by a factor that was rounded with its result
    dy[1::2].neg_()
    return dy.view(y.shape)


def softmax(x):
    y = _launch.launch_softmax_forward(x, -1, x.dtype)
    return y, _launch.launch_softmax_backward(gradient_of(y), y, -1, x.dtype)


def log_softmax(x):
    y = _launch.launch_log_softmax_forward(x, -1, x.dtype)
    return y, _launch.launch_log_softmax_backward(gradient_of(y), y, -1, x.dtype)


def class_indices(x):
    return torch.arange(len(x), device=x.device)


def probabilities(x):
    return torch.ones_like(x) / x.shape[1]


def loss(x, target):
    return _launch.launch_cross_entropy_loss(
        x, target, None, None, x.dtype, True, -100, "mean", 0.1
    )


def rows(x, target):
    """Forward and backward in two kernels."""
    weight = torch.ones(x.shape[1], device=x.device)
    outputs = _launch.launch_cross_entropy_forward(x, target, weight, 1.0, None, True)
    b = gradient_of(outputs.nll)
    args = (target, weight, outputs.softmax_stats, 2 * b, b, b / x.shape[1], None, 1.0, None)
    return outputs, _launch.launch_cross_entropy_backward(x, *args)


OPERATIONS = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "loss": lambda x: loss(x, class_indices(x)),
    "probability_loss": lambda x: loss(x, probabilities(x)),
    "cross_entropy": lambda x: rows(x, class_indices(x)),
    "probability_cross_entropy": lambda x: rows(x, probabilities(x)),
}
OPERATION = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
DTYPE = pytest.mark.parametrize("dtype", VEC_SIZES)


@OPERATION
@pytest.mark.parametrize(
    ("shape", "row_stride", "dtype"),
    [
        # every head in turn; several rows to a program; one; more than a tile, of which the
        # bfloat16 case has a block without head and tail
        pytest.param((17, 403), 403, torch.bfloat16, id="short"),
        pytest.param((9, 2001), 2001, torch.float32, id="a row to a program"),
        pytest.param((9, 2001), 2001, torch.bfloat16, id="a row of bfloat16 to a program"),
        pytest.param((2, 20003), 20003, torch.float32, id="longer than a tile"),
        pytest.param((2, 33003), 33003, torch.bfloat16, id="bfloat16 longer than a tile"),
        pytest.param((5, 1000), 1000, torch.bfloat16, id="aligned"),
        pytest.param((9, 1001), 1013, torch.float32, id="padded rows"),
    ],
)
def test_unaligned_rows_change_nothing_but_speed(
    kernel_device, operation, shape, row_stride, dtype
):
    x, storage = rows_in_storage(shape, row_stride, 0, dtype, kernel_device)
    # starts inside a vector, so its elements are accessed one by one
    narrow = rows_in_storage(shape, row_stride, 1, dtype, kernel_device)[0].copy_(x)
    before = storage.clone()
    assert Rows(x, limits=LIMITS).schedule.tile.vec_size == VEC_SIZES[dtype]
    assert Rows(narrow, limits=LIMITS).schedule.tile.vec_size == 1

    actual = operation(x)

    torch.testing.assert_close(actual, operation(narrow))
    torch.testing.assert_close(storage, before, rtol=0, atol=0, equal_nan=True)


@DTYPE
@pytest.mark.parametrize("n_cols", [301, 20003])
def test_unaligned_rows_in_place_are_written_by_their_own_program(kernel_device, dtype, n_cols):
    x, storage = rows_in_storage((9, n_cols), n_cols + 6, 0, dtype, kernel_device)
    arguments, options = (class_indices(x), None, None, dtype), (-100, "sum")
    loss, dlogits = _launch.launch_cross_entropy_loss(x.contiguous(), *arguments, True, *options)

    loss_in_place = _launch.launch_cross_entropy_loss_inplace(x, *arguments, *options)

    torch.testing.assert_close(loss_in_place, loss)
    torch.testing.assert_close(x, dlogits)
    beside = torch.ones_like(storage, dtype=torch.bool)
    beside.as_strided(x.shape, x.stride(), 0).fill_(False)
    assert storage[beside].isnan().all()


@DTYPE
def test_unaligned_rows_are_moved_by_vectors_wherever_they_begin(dtype):
    elements = VEC_SIZES[dtype]
    odd, wide = torch.empty(4, 1001, dtype=dtype), torch.empty(4, 1008, dtype=dtype)

    def size(*matrices):
        return Rows(*matrices, limits=LIMITS).schedule.tile.vec_size

    assert size(odd) == size(odd, odd) == size(wide[:, :1001]) == elements
    # Triton infers the alignment
    assert size(wide) == 1
    # the rows of the two matrices have different heads
    assert size(odd, torch.empty(4, 1002, dtype=dtype)[:, :1001]) == 1
    assert size(odd, odd[:1].expand(4, 1001)) == 1
    assert size(odd[1:]) == (elements if 1001 % elements == 0 else 1)
    assert size(odd.T) == 1


def test_unaligned_rows_that_are_short_or_need_a_longer_block_move_by_elements():
    assert vec_size(8 * MIN_VECTORS - 1, [(0, 127, 1)], [0], 2) == 1
    assert vec_size(8 * MIN_VECTORS + 1, [(0, 129, 1)], [0], 2) == 8
    assert vec_size(1023, [(0, 1023, 1)], [0], 2) == 1
