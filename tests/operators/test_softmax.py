from functools import partial

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from numerics import DTYPES, assert_agrees, assert_as_accurate_as_torch, value_and_gradients
from operator_pairs import LOG_SOFTMAX, SOFTMAX, each_softmax
from pairwise import pairwise

OPERATORS = [
    pytest.param(torch_softmax.softmax, F.softmax, id="softmax"),
    pytest.param(torch_softmax.log_softmax, F.log_softmax, id="log_softmax"),
]
each_operator_of_dim = pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
# few classes in a partial last block of rows, one element, one and several blocks per row
SHAPES = [(300, 10), (1, 1), (5, 1000), (2, 20_011)]


@pytest.mark.parametrize(
    ("functions", "shape", "dtype"), pairwise([SOFTMAX, LOG_SOFTMAX], SHAPES, DTYPES)
)
def test_softmax_is_as_accurate_as_torch(functions, shape, dtype, device):
    assert_agrees(*functions, (3 * torch.randn(shape, device=device)).to(dtype))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: x[1:, ::2, 2:5, 1:],
    "transposed": lambda x: x.transpose(0, 3),
    "expanded": lambda x: x[:1].expand(3, 4, 6, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@each_operator_of_dim
def test_softmax_takes_any_axis_of_any_layout(operator, torch_operator, dim, layout, device):
    x = layout(torch.randn(3, 4, 6, 5, device=device))
    torch.testing.assert_close(
        value_and_gradients(partial(operator, dim=dim), x),
        value_and_gradients(partial(torch_operator, dim=dim), x),
    )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4), ()])
@each_operator_of_dim
def test_softmax_of_an_empty_tensor_is_as_in_torch(operator, torch_operator, shape, device):
    x = torch.randn(shape, device=device)
    dim = min(1, max(x.dim() - 1, 0))
    torch.testing.assert_close(
        value_and_gradients(partial(operator, dim=dim), x),
        value_and_gradients(partial(torch_operator, dim=dim), x),
    )


# one block of several rows, one block per row, several blocks per row
@pytest.mark.parametrize("n_cols", [10, 1000, 20_011])
@each_softmax
def test_softmax_of_infinities_is_as_in_torch(ours, theirs, n_cols, device):
    inf = torch.inf
    x = torch.randn(6, n_cols, device=device)
    x[0, : n_cols // 2] = -inf  # a whole leading block where a row has several
    x[1] = -inf
    x[2, 1:] = -inf
    x[3, 3] = inf
    x[4, 3] = torch.nan
    x[5] -= 10_000
    assert_as_accurate_as_torch(ours(x), theirs(x), theirs(x.double()))


@each_operator_of_dim
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("input_dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_softmax_widens_to_dtype(operator, torch_operator, input_dtype, dtype, device):
    x = torch.arange(-6, 6, device=device).view(3, 4).to(input_dtype)
    y = operator(x, 1, dtype=dtype)
    assert_as_accurate_as_torch(y, torch_operator(x, 1, dtype=dtype), torch_operator(x.double(), 1))
    if x.is_floating_point():
        x.requires_grad_()
        operator(x, 1, dtype).square().sum().backward()
        assert x.grad.dtype == input_dtype


@each_operator_of_dim
def test_softmax_under_autocast_has_torchs_dtype(operator, torch_operator, device):
    x = torch.randn(3, 4, device=device, dtype=torch.bfloat16)
    with torch.autocast(device.type, torch.bfloat16):
        assert operator(x, 1).dtype == torch_operator(x, 1).dtype


def test_softmax_of_the_worked_example():
    logits = torch.tensor([0.1, 0.3, 0.05, 0.02, 0.01, 0.1, 0.2, 0.05, 0.05, 0.12])
    expected = [0.0996, 0.1217, 0.0948, 0.0920, 0.0911, 0.0996, 0.1101, 0.0948, 0.0948, 0.1016]
    probabilities = torch_softmax.softmax(logits, 0)
    assert [round(p, 4) for p in probabilities.tolist()] == expected
    assert probabilities.argmax() == 1
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, 2.0], 0), TypeError, "input to be a Tensor, got list"),
        ((torch.ones(2, dtype=torch.int64), 0), TypeError, "input to be .*, got torch.int64"),
        ((torch.ones(2), 0, torch.int32), TypeError, "dtype to be .* got torch.int32"),
        ((torch.ones(2, 3), 2), IndexError, r"dim in \[-2, 2\), got 2"),
        ((torch.ones(2, 3), None), TypeError, "dim of type int, got None"),
        ((torch.ones(2, 3), 1.0), TypeError, "dim of type int, got 1.0"),
    ],
)
@pytest.mark.parametrize("operator", [torch_softmax.softmax, torch_softmax.log_softmax])
def test_softmax_names_the_bad_argument(operator, arguments, error, message):
    with pytest.raises(error, match=f"^{operator.__name__} needs {message}"):
        operator(*arguments)
