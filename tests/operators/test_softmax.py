import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from numerics import DTYPES, assert_as_accurate_as_torch

OPERATORS = [
    pytest.param(torch_softmax.softmax, F.softmax, id="softmax"),
    pytest.param(torch_softmax.log_softmax, F.log_softmax, id="log_softmax"),
]
# few classes, an odd number that leaves a partial last block of rows, one block, a walked row
SHAPES = [(300, 10), (1, 1), (5, 1000), (2, 50257)]


def value_and_gradient(operator, x, dim, dy):
    x = x.detach().requires_grad_()
    y = operator(x, dim)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
def test_softmax_is_as_accurate_as_torch(operator, torch_operator, shape, dtype, device):
    x = (3 * torch.randn(shape, device=device)).to(dtype)
    dy = torch.randn(shape, device=device).to(dtype)
    y, dx = value_and_gradient(operator, x, 1, dy)
    y_torch, dx_torch = value_and_gradient(torch_operator, x, 1, dy)
    y_exact, dx_exact = value_and_gradient(torch_operator, x.double(), 1, dy.double())
    assert_as_accurate_as_torch(y, y_torch, y_exact)
    assert_as_accurate_as_torch(dx, dx_torch, dx_exact)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
def test_softmax_takes_any_axis_of_any_layout(operator, torch_operator, dim, device):
    base = torch.randn(6, 7, 8, 5, device=device)
    layouts = {
        "contiguous": base,
        "channels last": base.to(memory_format=torch.channels_last),
        "sliced": base[1:, ::2, 2:7, 1:],
        "transposed": base.transpose(0, 3),
        "expanded": base[:1].expand(3, 7, 8, 5),
    }
    for name, x in layouts.items():
        dy = torch.randn_like(x)
        expected = value_and_gradient(torch_operator, x, dim, dy)
        torch.testing.assert_close(
            value_and_gradient(operator, x, dim, dy), expected, msg=lambda m, name=name: name + m
        )


@pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4), ()])
def test_softmax_of_nothing_is_as_in_torch(operator, torch_operator, shape, device):
    x = torch.randn(shape, device=device)
    dy = torch.ones_like(x)
    dim = min(1, max(x.dim() - 1, 0))
    torch.testing.assert_close(
        value_and_gradient(operator, x, dim, dy), value_and_gradient(torch_operator, x, dim, dy)
    )


@pytest.mark.parametrize("n_cols", [10, 1000, 50257])
@pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
def test_softmax_of_infinities_is_as_in_torch(operator, torch_operator, n_cols, device):
    inf = torch.inf
    x = torch.randn(6, n_cols, device=device)
    x[0, : n_cols // 2] = -inf  # whole leading blocks where a row is walked
    x[1] = -inf
    x[2, 1:] = -inf
    x[3, 3] = inf
    x[4, 3] = torch.nan
    x[5] -= 10_000
    exact = torch_operator(x.double(), 1)
    assert_as_accurate_as_torch(operator(x, 1), torch_operator(x, 1), exact)


def test_softmax_accepts_expanded_gradients(device):
    x = torch.randn(4, 10, device=device, requires_grad=True)
    torch_softmax.softmax(x, 1).sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
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


def test_softmax_leaves_its_input_alone(device):
    x = torch.randn(5, 10, device=device, requires_grad=True)
    before = x.detach().clone()
    for operator in (torch_softmax.softmax, torch_softmax.log_softmax):
        operator(x, 1).square().sum().backward()
        with torch.no_grad():
            operator(x, 1)
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
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


@pytest.mark.parametrize(("operator", "torch_operator"), OPERATORS)
def test_softmax_module_computes_the_function(operator, torch_operator):
    module = {
        "softmax": torch_softmax.Softmax(dim=1),
        "log_softmax": torch_softmax.LogSoftmax(dim=1),
    }[operator.__name__]
    x = torch.randn(3, 4)
    assert torch.equal(module(x), operator(x, 1))
    assert repr(module) == f"{type(module).__name__}(dim=1)"


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
