"""The CPU's operators for rows: losses and statistics, and the gradient from coefficients."""

import pytest
import torch

from cpu_losses import OPERATORS, double, some_targets
from devices import NOT_COMPILED, take_path
from numerics import DTYPES
from torch_softmax import reference
from torch_softmax._cpu import blocks
from torch_softmax._layout import RowOutputs, compute_dtype

PATHS = [pytest.param("compiled", marks=NOT_COMPILED), "uncompiled"]
SHAPES = [(5, 3), (40, 10), (130, 64), (9, 135), (6, 1500), (70, 2, 10), (5,), "images"]
SCALINGS = [(1.0, None), (2.0, 3.0), (-0.5, None)]


@pytest.fixture(params=PATHS, autouse=True)
def is_compiled(request, cpu_path, monkeypatch):
    """Both forms of the operators."""
    take_path(request.param)
    if request.param == "uncompiled":
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 500)
    return request.param == "compiled"


def forward(*args):
    return RowOutputs(*OPERATORS.cross_entropy_forward(*args))


def some_rows(shape, dtype, kind):
    if shape == "images":
        logits = (3 * torch.randn(2, 21, 20, 5)).to(dtype).movedim(1, -1)
    else:
        logits = (3 * torch.randn(shape)).to(dtype)
    target = some_targets(logits, kind)
    return logits, target if kind == "probabilities" else target.clamp(min=0)


def assert_close_to(actual, exact, roundings):
    dtype = actual.dtype
    tolerance = roundings * torch.finfo(dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_cpu_rows_are_those_of_the_reference(shape, dtype, kind, weighted, with_entropy):
    logits, target = some_rows(shape, dtype, kind)
    class_weight = torch.rand(logits.shape[-1]).to(compute_dtype(dtype)) if weighted else None
    for scaling in SCALINGS:
        args = (logits, target, class_weight, *scaling, with_entropy)
        exact = reference.cross_entropy_forward(*map(double, args))
        outputs = forward(*args)
        for name, actual, truth in zip(outputs._fields, outputs, exact, strict=True):
            assert actual.shape == truth.shape, name
            assert actual.dtype == (
                torch.int64 if name == "prediction" else compute_dtype(dtype)
            ), name
            if name == "prediction":
                assert torch.equal(actual, truth)
            elif truth.numel() > 0:
                assert_close_to(actual, truth, roundings=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_e", [False, True])
def test_cpu_gradient_is_that_of_the_reference(shape, dtype, kind, weighted, with_e):
    logits, target = some_rows(shape, dtype, kind)
    wide, batch = compute_dtype(dtype), logits.shape[:-1]
    class_weight = torch.rand(logits.shape[-1]).to(wide) if weighted else None
    a, b, s, e = (torch.rand(batch).to(wide) for _ in range(4))
    if a.dim() > 0:
        a[..., ::3] = 0
    coefficients = (a, b, s if weighted else None, e if with_e else None)
    for scaling in SCALINGS:
        stats = reference.cross_entropy_forward(logits, target, None, *scaling)[-1]
        args = (logits, target, class_weight, stats, *coefficients, *scaling)
        exact = reference.cross_entropy_backward(*map(double, args))
        dlogits = OPERATORS.cross_entropy_backward(*args)
        assert_close_to(dlogits, exact, roundings=32)
        copy = logits.clone(memory_format=torch.preserve_format)
        assert OPERATORS.cross_entropy_backward_inplace(copy, *args[1:]) is None
        assert torch.equal(copy, dlogits)


def test_cpu_gradient_takes_expanded_coefficients():
    logits, target = torch.randn(40, 10), torch.arange(40) % 10
    stats = reference.cross_entropy_forward(logits, target, None)[-1]
    a, b = torch.rand(()), torch.rand(())
    dlogits = OPERATORS.cross_entropy_backward(
        logits, target, None, stats, a.expand(40), b.expand(40), None, None, 1.0, None
    )
    rows = (a.repeat(40), b.repeat(40))
    expected = reference.cross_entropy_backward(logits, target, None, stats, *rows)
    torch.testing.assert_close(dlogits, expected)


@pytest.mark.parametrize("n_copies", [1, 20])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_cpu_rows_that_are_not_finite_are_those_of_the_reference(n_copies, softcap):
    logits = torch.randn(12, 10).repeat(1, n_copies)
    logits[3, 4] = logits[9] = torch.nan
    logits[5, 0] = torch.inf
    logits[7] = logits[8, 2] = -torch.inf
    target = torch.arange(12) % 10
    target[8] = 3
    weight = torch.rand(10 * n_copies)
    args = (logits, target, weight, 1.0, softcap, True)
    outputs = forward(*args)
    for actual, expected in zip(outputs, reference.cross_entropy_forward(*args), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)
    a, b, s, e = torch.rand(4, 12)
    a[3] = e[3] = 0
    args = (logits, target, weight, outputs.softmax_stats, a, b, s, e, 1.0, softcap)
    expected = reference.cross_entropy_backward(*args)
    torch.testing.assert_close(OPERATORS.cross_entropy_backward(*args), expected, equal_nan=True)


def test_cpu_prediction_is_the_first_of_equal_logits_and_nan_before_all():
    logits = torch.zeros(20, 40)
    logits[1:, 7] = logits[1:, 9] = 1
    logits[2, 30] = logits[2, 35] = torch.nan
    logits[3, 0] = torch.inf
    outputs = forward(logits, torch.zeros(20, dtype=torch.long), None, 1.0, None, True)
    assert torch.equal(outputs.prediction, logits.argmax(-1))


@pytest.mark.parametrize("bad", [-1, 10, 2**40])
def test_cpu_rows_refuse_an_invalid_target(bad):
    target = torch.tensor([0, bad])
    with pytest.raises(IndexError, match=f"got {bad}"):
        forward(torch.randn(2, 10), target, None, 1.0, None, False)


def test_cpu_rows_of_an_empty_batch():
    target = torch.zeros(0, dtype=torch.long)
    outputs = forward(torch.randn(0, 3), target, None, 1.0, None, True)
    assert outputs.nll.shape == outputs.prediction.shape == (0,)
    assert outputs.softmax_stats.shape == (0, 2)
