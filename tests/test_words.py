"""Rows that do not begin with a word of memory, moved in whole words all the same."""

import pytest
import torch
from torch_softmax._kernels.tiling import MIN_WORDS, word_elements

import torch_softmax
from torch_softmax import _launch
from torch_softmax._launch.start import Rows
from torch_softmax._layout import compute_dtype
from torch_softmax._options import LossOptions

ELEMENTS_OF_A_WORD = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 4, torch.float64: 2}
# beside every row: a NaN that reaches a sum, or is overwritten, is found
BESIDE = float("nan")


def rows_in_storage(shape, row_stride, start, dtype, device):
    """Random rows that begin ``start`` elements into their storage, and the storage."""
    n_rows, _ = shape
    storage = torch.full((start + n_rows * row_stride + 64,), BESIDE, dtype=dtype, device=device)
    rows = storage.as_strided(shape, (row_stride, 1), start)
    return rows.copy_(torch.randn(shape)), storage


def loss(x, **options):
    return torch_softmax.cross_entropy(x, torch.arange(len(x), device=x.device), **options)


OPERATIONS = {
    "softmax": lambda x: torch_softmax.softmax(x, 1),
    "log_softmax": lambda x: torch_softmax.log_softmax(x, 1),
    # loss and gradient in one pass, and in two
    "cross_entropy_step": lambda x: loss(x, label_smoothing=0.1),
    "cross_entropy": lambda x: loss(x, reduction="none", label_smoothing=0.1),
    "soft_cross_entropy": lambda x: torch_softmax.cross_entropy(
        x, torch.ones_like(x) / x.shape[1], label_smoothing=0.1
    ),
}
OPERATION = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
DTYPE = pytest.mark.parametrize("dtype", ELEMENTS_OF_A_WORD)


def value_and_gradient(function, x):
    x = x.detach().requires_grad_()
    y = function(x)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device)
    # log_softmax multiplies their sum by what is left of a result that was rounded
    dy[1::2].neg_()
    y.backward(dy.view(y.shape))
    return y.detach(), x.grad


@OPERATION
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "row_stride"),
    [
        # every head in turn; several rows to a program; one; a walk
        pytest.param((17, 403), 403, id="short"),
        pytest.param((9, 2001), 2001, id="a row to a program"),
        pytest.param((3, 40003), 40003, id="walked"),
        pytest.param((5, 1000), 1000, id="whole words"),
        pytest.param((9, 1001), 1013, id="gaps between rows"),
    ],
)
def test_words_change_nothing_but_speed(kernel_device, operation, dtype, shape, row_stride):
    x, storage = rows_in_storage(shape, row_stride, 0, dtype, kernel_device)
    # begins inside a word, so that its elements are moved one by one
    narrow = rows_in_storage(shape, row_stride, 1, dtype, kernel_device)[0].copy_(x)
    before = storage.clone()
    assert Rows(x, held_values=1).vector == ELEMENTS_OF_A_WORD[dtype]
    assert Rows(narrow, held_values=1).vector == 1

    actual = value_and_gradient(operation, x)

    torch.testing.assert_close(actual, value_and_gradient(operation, narrow))
    torch.testing.assert_close(storage, before, rtol=0, atol=0, equal_nan=True)


@DTYPE
@pytest.mark.parametrize("n_cols", [301, 40003])
def test_words_of_rows_in_place_are_written_by_their_own_program(kernel_device, dtype, n_cols):
    x, storage = rows_in_storage((9, n_cols), n_cols + 6, 0, dtype, kernel_device)
    target = torch.arange(9, device=kernel_device)
    options = LossOptions(-100, "sum", 0.0, 0.0, None, 1.0)
    arguments = (target, None, options, compute_dtype(dtype))
    dlogits = torch.empty_like(x.contiguous())
    loss = _launch.launch_cross_entropy_loss(x.contiguous(), *arguments, dlogits)

    loss_in_place = _launch.launch_cross_entropy_loss(x, *arguments, x)

    torch.testing.assert_close(loss_in_place, loss)
    torch.testing.assert_close(x, dlogits)
    beside = torch.ones_like(storage, dtype=torch.bool)
    beside.as_strided(x.shape, x.stride(), 0).fill_(False)
    assert storage[beside].isnan().all()


@DTYPE
def test_words_are_moved_where_rows_begin_anywhere(dtype):
    elements = ELEMENTS_OF_A_WORD[dtype]
    odd, wide = torch.empty(4, 1001, dtype=dtype), torch.empty(4, 1008, dtype=dtype)

    def vector(*matrices):
        return Rows(*matrices, held_values=1).vector

    assert vector(odd) == vector(odd, odd) == vector(wide[:, :1001]) == elements
    # Triton's own
    assert vector(wide) == 1
    # words of one are not words of the other
    assert vector(odd, torch.empty(4, 1002, dtype=dtype)[:, :1001]) == 1
    assert vector(odd, odd[:1].expand(4, 1001)) == 1
    assert vector(odd[1:]) == (elements if 1001 % elements == 0 else 1)
    assert vector(odd.T) == 1


def test_words_are_not_worth_it_in_short_rows_and_longer_blocks():
    assert word_elements(8 * MIN_WORDS - 1, [(0, 127, 1)], [0], 2) == 1
    assert word_elements(8 * MIN_WORDS + 1, [(0, 129, 1)], [0], 2) == 8
    assert word_elements(1023, [(0, 1023, 1)], [0], 2) == 1
