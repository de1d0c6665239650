"""The loss operator on the CPU, compiled and in blocks: values, gradients, memory."""

import math

import pytest
import torch

from cpu_losses import (
    OPTIONS,
    double,
    loss_alone,
    loss_and_gradient,
    some_targets,
    torch_loss_and_gradient,
)
from devices import NOT_COMPILED, take_path
from numerics import DTYPES, assert_as_accurate_as_torch
from torch_softmax import _cpu, reference
from torch_softmax._cpu import blocks
from torch_softmax._layout import compute_dtype
from torch_softmax.benchmark.memory import peak_bytes_on_cpu

PATHS = [pytest.param("compiled", marks=NOT_COMPILED), "uncompiled"]
# few rows, tiles of rows that are not full and more than one, long rows, the class-strided layout
SHAPES = [(5, 2), (3, 10), (40, 10), (130, 64), (700, 7), (9, 65), (20, 1500), (70, 2, 10)]
IMAGES = [(2, 21, 20, 25), (1, 200, 3, 9), (2, 3, 7, 1)]
ALL_OPTIONS = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"z_loss": 0.01, "softcap": 3.0, "logit_scale": 2.0},
    {"label_smoothing": 0.2, "z_loss": 0.1, "logit_scale": -0.5, "denominator": torch.tensor(7)},
]


@pytest.fixture(params=PATHS, autouse=True)
def is_compiled(request, cpu_path, monkeypatch):
    """Both forms of the operator."""
    take_path(request.param)
    if request.param == "uncompiled":
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 500)
    return request.param == "compiled"


def some_logits(shape, dtype, images=False):
    logits = (3 * torch.randn(shape)).to(dtype)
    return logits.movedim(1, -1) if images else logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "images"), [*((s, False) for s in SHAPES), *((s, True) for s in IMAGES)]
)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cpu_loss_is_as_accurate_as_torch(shape, images, dtype, kind, weighted):
    logits = some_logits(shape, dtype, images)
    weight = torch.rand(logits.shape[-1]).to(dtype) if weighted else None
    target = some_targets(logits, kind)
    args = (logits, target, weight)
    for options in ALL_OPTIONS:
        ours = loss_and_gradient(*args, **options)
        theirs = torch_loss_and_gradient(*args, **options)
        exact = torch_loss_and_gradient(*map(double, args), **options)
        for actual, baseline, truth in zip(ours, theirs, exact, strict=True):
            if dtype != torch.float64:
                assert_as_accurate_as_torch(actual, baseline, truth)
            else:
                tolerance = 1e-13 * truth.abs().max().item()
                torch.testing.assert_close(actual, truth, rtol=1e-12, atol=tolerance)


@pytest.mark.parametrize("inplace", [False, True])
def test_cpu_gradient_has_the_factor_dloss_before_it_is_rounded(inplace):
    logits = some_logits((40, 10), torch.float16)
    args, factor = (logits, some_targets(logits)), torch.tensor(2.0**30)
    loss, expected = loss_and_gradient(*args, denominator=torch.tensor(4.0))
    small = {"denominator": 4 * factor}
    assert loss_and_gradient(*args, **small)[1].count_nonzero() == 0
    actual = loss_and_gradient(*args, **small, inplace=inplace, dloss=factor)
    torch.testing.assert_close(actual, (loss / factor, expected), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "images"), [((5, 10), False), ((40, 10), False), ((9, 700), False), (IMAGES[0], True)]
)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("expanded", [False, True])
def test_cpu_loss_of_each_row_has_a_gradient_with_its_dloss(shape, images, dtype, kind, expanded):
    logits = some_logits(shape, dtype, images)
    target, batch = some_targets(logits, kind), logits.shape[:-1]
    dloss = (torch.arange(batch.numel()) % 7 - 3.5).to(dtype).view(batch)
    dloss = dloss.flatten()[-1].expand(batch) if expanded else dloss
    options = {"reduction": "none", "label_smoothing": 0.1, "z_loss": 0.01, "dloss": dloss}
    settings = (OPTIONS | options).values()
    *settings, _ = settings
    exact = reference.cross_entropy_loss(
        double(logits), double(target), None, None, None, True, *settings, dloss=dloss.double()
    )
    wide = compute_dtype(dtype)
    loss, dlogits = loss_and_gradient(logits, target, **options)
    assert loss.shape == batch and dlogits.stride() == torch.empty_like(logits).stride()
    torch.testing.assert_close(loss, exact[0].to(wide))
    torch.testing.assert_close(dlogits, exact[1].to(dtype))
    copy = logits.clone(memory_format=torch.preserve_format)
    overwritten = loss_and_gradient(copy, target, inplace=True, **options)
    assert torch.equal(overwritten[0], loss) and torch.equal(overwritten[1], dlogits)


@pytest.mark.parametrize("shape", [(5, 10), (40, 10), (9, 700)])
def test_cpu_loss_of_a_row_with_dloss_0_has_no_gradient(shape):
    logits = torch.randn(shape)
    logits[::2] = torch.nan
    dloss = torch.arange(shape[0]) % 2.0
    options = {"reduction": "none", "dloss": dloss}
    _, dlogits = loss_and_gradient(logits, some_targets(logits).clamp(min=0), **options)
    assert (dlogits[::2] == 0).all() and (dlogits[1::2] != 0).all()


@pytest.mark.parametrize(
    ("shape", "images"), [((12, 10), False), ((3, 70), False), (IMAGES[0], True)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_cpu_loss_writes_the_same_gradient_over_the_logits(shape, images, dtype, kind):
    logits = some_logits(shape, dtype, images)
    target = some_targets(logits, kind)
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0}
    loss, dlogits = loss_and_gradient(logits, target, **options)
    alone, nothing = loss_alone(logits, target, **options)
    copy = logits.clone(memory_format=torch.preserve_format)
    inplace_loss, overwritten = loss_and_gradient(copy, target, inplace=True, **options)
    assert torch.equal(loss, inplace_loss) and torch.equal(loss, alone)
    assert torch.equal(dlogits, overwritten)
    assert nothing.shape == (0,)


def test_cpu_loss_takes_targets_and_weights_of_any_dtype_and_stride():
    logits = torch.randn(5, 9)
    target = torch.arange(10)[::2] % 9
    weight = torch.rand(18, dtype=torch.float64)[::2]
    expected = torch_loss_and_gradient(logits.double(), target, weight)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        for actual, truth in zip(
            loss_and_gradient(logits, target.to(dtype), weight), expected, strict=True
        ):
            torch.testing.assert_close(actual, truth.float())
    one_row = torch.rand(9, dtype=torch.float64).softmax(-1).expand(5, 9)
    expected = torch_loss_and_gradient(logits.double(), one_row)
    for actual, truth in zip(loss_and_gradient(logits, one_row), expected, strict=True):
        torch.testing.assert_close(actual, truth.float())


@pytest.mark.parametrize("shape", [(12, 10), (12, 300)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_cpu_loss_keeps_nan_in_its_row(shape, dtype, softcap):
    logits = torch.randn(shape).to(dtype)
    logits[3, 4] = logits[9] = torch.nan
    logits[5, 0] = torch.inf
    logits[7] = -torch.inf
    target = torch.arange(12) % 10
    target[9] = -100
    loss, dlogits = loss_and_gradient(logits, target, softcap=softcap, reduction="sum")
    _, expected = torch_loss_and_gradient(logits.double(), target, softcap=softcap, reduction="sum")
    expected[9] = 0
    assert loss.isnan()
    assert torch.equal(dlogits[:7].isnan(), expected[:7].isnan())
    assert torch.equal(dlogits[8:].isnan(), expected[8:].isnan())
    assert (dlogits[9] == 0).all()


def test_cpu_loss_of_a_class_at_minus_infinity():
    logits = torch.randn(2, 10)
    logits[:, 3] = -torch.inf
    probabilities = torch.full((2, 10), 0.1)
    probabilities[:, 3] = 0
    loss, dlogits = loss_and_gradient(logits, probabilities)
    assert loss.isfinite() and (dlogits[:, 3] == 0).all()
    assert loss_and_gradient(logits, torch.tensor([3, 1]))[0] == torch.inf


@pytest.mark.parametrize("shape", [(12, 10), (3, 300)])
@pytest.mark.parametrize("bad", [-1, 300, 2**40, -(2**63)])
def test_cpu_loss_writes_nothing_if_a_target_is_invalid(shape, bad):
    logits = torch.randn(shape)
    before, target = logits.clone(), torch.arange(shape[0]) % 10
    target[-1] = bad
    with pytest.raises(IndexError, match=rf"\[0, {shape[1]}\) or equal to ignore_index, got {bad}"):
        loss_and_gradient(logits, target, inplace=True)
    assert torch.equal(logits, before)


def test_cpu_loss_of_no_row():
    ignored = torch.full((4,), -100)
    loss, dlogits = loss_and_gradient(torch.randn(4, 3), ignored)
    assert loss.isnan() and (dlogits == 0).all()
    loss, dlogits = loss_and_gradient(torch.randn(4, 3), ignored, denominator=torch.tensor(2.0))
    assert loss == 0 and (dlogits == 0).all()
    nothing = (torch.randn(0, 3), torch.zeros(0, dtype=torch.long))
    assert loss_and_gradient(*nothing)[0].isnan()
    assert loss_and_gradient(*nothing, reduction="sum")[0] == 0
    assert loss_and_gradient(*nothing)[1].shape == (0, 3)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 5, 7, 11, 64, 65, 1000, 128256])
def test_cpu_logarithm_is_exact(n_classes, is_compiled):
    if not is_compiled:
        pytest.skip("PyTorch's sums of float32 are not rounded to 1 ulp")
    loss, _ = loss_and_gradient(torch.full((9, n_classes), 5.0), torch.zeros(9, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(n_classes), rel=2**-23, abs=0)


@pytest.mark.parametrize(
    ("dtype", "n_copies"),
    # sums of float64 are rounded with each term
    [*((torch.float32, n) for n in (1, 20, 200)), *((torch.float64, n) for n in (1, 20))],
)
def test_cpu_exponential_is_exact_down_to_the_last_normal_number(dtype, n_copies, is_compiled):
    if not is_compiled:
        pytest.skip("the reference takes the exponential of a rounded logarithm")
    info = torch.finfo(dtype)
    below = torch.linspace(0, 1.1 * -math.log(info.tiny), 5000, dtype=dtype)
    logits = torch.stack([torch.zeros_like(below), -below], 1).repeat_interleave(n_copies, 1)
    target = torch.zeros(5000, dtype=torch.long)
    _, dlogits = loss_and_gradient(logits, target, reduction="sum")
    relative = below.double().neg().exp()
    exact = relative / (n_copies * (1 + relative))
    error = (dlogits[:, -1].double() - exact).abs()
    assert (error <= 4 * info.eps * exact + info.tiny).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_softcap_gradient_does_not_cancel_near_saturation(dtype, is_compiled):
    if not is_compiled:
        pytest.skip("the reference takes 1 - tanh**2 from a rounded tanh")
    x = torch.cat([torch.linspace(-1, 1, 1001), torch.linspace(-12, 12, 1001)]).to(dtype)
    logits = torch.stack([x, torch.zeros_like(x)], 1)
    args = {"softcap": 1.0, "reduction": "sum"}
    _, dlogits = loss_and_gradient(logits, torch.ones(len(x), dtype=torch.long), **args)
    wide = x.double()
    derivative = 1 / torch.cosh(wide).square()
    exact = torch.sigmoid(torch.tanh(wide)) * derivative
    error = ((dlogits[:, 0].double() - exact) / exact).abs().max().item()
    assert error < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 10), (5, 300)])
def test_cpu_half_precision_gradient_is_the_float32_one_rounded(dtype, shape):
    logits = torch.randn(shape).to(dtype)
    target = some_targets(logits)
    loss, dlogits = loss_and_gradient(logits, target)
    wide_loss, wide_dlogits = loss_and_gradient(logits.float(), target)
    assert torch.equal(loss, wide_loss)
    assert torch.equal(dlogits, wide_dlogits.to(dtype))


def test_cpu_float16_is_read_and_written_exactly():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()].view(-1, 2)
    every = torch.cat([every, every.flip(1)])
    target = torch.zeros(len(every), dtype=torch.long)
    # a gradient of the size of the smallest numbers
    options = {"reduction": "mean", "denominator": torch.tensor(2.0**22)}
    _, dlogits = loss_and_gradient(every, target, **options)
    _, wide = loss_and_gradient(every.float(), target, **options)
    assert torch.equal(dlogits, wide.half())
    assert (dlogits != 0).any() and dlogits.abs().max() < torch.finfo(torch.float16).tiny


@pytest.mark.parametrize("inplace", [False, True])
def test_cpu_loss_allocates_one_matrix_and_in_place_none(inplace, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2**16)
    logits, target = torch.randn(4096, 1000), torch.randint(1000, (4096,))
    peak = peak_bytes_on_cpu(lambda: loss_and_gradient(logits, target, inplace=inplace))
    assert peak / logits.nbytes < (0.15 if inplace else 1.15)


def test_cpu_exports_what_the_operators_call():
    assert all(callable(getattr(_cpu, name)) for name in _cpu.__all__)
