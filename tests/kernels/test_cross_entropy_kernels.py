"""The kernels with losses and coefficients per row, launched directly, against the reference."""

import pytest
import torch
import torch.nn.functional as F

from numerics import assert_as_accurate_as_torch
from torch_softmax import _launch, reference

# logits with the class axis last, and the schedule of their rows
SHAPES = {
    "several rows to a program": (40, 10),
    "a row to a program": (2, 3000),
    "unaligned rows": (3, 1001),
    "longer than a tile": (2, 20000),
}
SHAPE = pytest.mark.parametrize("shape", SHAPES)
TARGET = pytest.mark.parametrize("has_probabilities", [False, True])
PLAIN, EVERYTHING = (False, 1.0, None, False), (True, -0.7, 3.0, True)
OPTION = pytest.mark.parametrize(
    ("is_smoothed", "logit_scale", "softcap", "has_entropy"), [PLAIN, EVERYTHING]
)


def make_target(logits, has_probabilities):
    if has_probabilities:
        return torch.randn(logits.shape, device=logits.device).softmax(-1)
    n_rows = logits.shape[:-1].numel()
    index = (7 * torch.arange(n_rows, device=logits.device)) % logits.shape[-1]
    return index.view(logits.shape[:-1])


def make_weight(logits, is_smoothed):
    n_cols = logits.shape[-1]
    return torch.linspace(0.25, 2.0, n_cols, device=logits.device) if is_smoothed else None


def as_double(value):
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if is_float else value


@SHAPE
@TARGET
@OPTION
def test_cross_entropy_forward_is_accurate(
    kernel_device, shape, has_probabilities, is_smoothed, logit_scale, softcap, has_entropy
):
    logits = torch.randn(SHAPES[shape], device=kernel_device)
    target, weight = make_target(logits, has_probabilities), make_weight(logits, is_smoothed)
    args = (logits, target, weight, logit_scale, softcap, has_entropy)

    actual = _launch.launch_cross_entropy_forward(*args)

    baselines = reference.cross_entropy_forward(*args)
    exacts = reference.cross_entropy_forward(*map(as_double, args))
    for name, value, baseline, exact in zip(actual._fields, actual, baselines, exacts, strict=True):
        if name == "prediction":
            assert torch.equal(value, exact)
        elif value.numel():
            assert_as_accurate_as_torch(value, baseline, exact)


@SHAPE
@TARGET
@OPTION
def test_cross_entropy_backward_is_accurate(
    kernel_device, shape, has_probabilities, is_smoothed, logit_scale, softcap, has_entropy
):
    logits = torch.randn(SHAPES[shape], device=kernel_device)
    target, weight = make_target(logits, has_probabilities), make_weight(logits, is_smoothed)
    cap = (logit_scale, softcap)
    stats = reference.cross_entropy_forward(logits, target, weight, *cap)[-1]
    b = torch.linspace(0.5, 1.0, len(logits), device=kernel_device)
    s = b / logits.shape[-1] if is_smoothed else None
    e = 0.1 * b if has_entropy else None
    args = (logits, target, weight, stats, 1.5 * b, b, s, e, *cap)

    actual = _launch.launch_cross_entropy_backward(*args)
    _launch.launch_cross_entropy_backward_inplace(inplace := logits.clone(), *args[1:])

    baseline = reference.cross_entropy_backward(*args)
    exact = reference.cross_entropy_backward(*map(as_double, args))
    assert_as_accurate_as_torch(actual, baseline, exact)
    torch.testing.assert_close(inplace, actual, rtol=0, atol=0)


@TARGET
def test_cross_entropy_backward_of_a_row_without_coefficients_is_0(
    kernel_device, has_probabilities
):
    logits = torch.randn(3, 100, device=kernel_device)
    target = make_target(logits, has_probabilities)
    logits[1] = float("nan")
    stats = reference.cross_entropy_forward(logits, target, None)[-1]
    b = torch.tensor([1.0, 0.0, 1.0], device=kernel_device)

    dlogits = _launch.launch_cross_entropy_backward(
        logits, target, None, stats, b, b, None, None, 1.0, None
    )

    assert (dlogits[1] == 0).all()
    assert dlogits.isfinite().all()


def test_cross_entropy_forward_of_an_invalid_target_is_nan(kernel_device):
    logits = torch.randn(3, 100, device=kernel_device)
    target = torch.tensor([0, 100, -1], device=kernel_device)

    nll = _launch.launch_cross_entropy_forward(logits, target, None, 1.0, None, False).nll

    assert nll.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_cols", [32769, 20011])
def test_cross_entropy_of_smoothing_alone_is_accurate_at_a_large_scale(kernel_device, n_cols, seed):
    # losses of 400 per class, summed relative to a maximum that grows from block to block
    torch.manual_seed(seed)
    logits = 100 * torch.randn(1, n_cols, device=kernel_device)
    target = torch.zeros(1, dtype=torch.int64, device=kernel_device)
    weight = torch.ones(n_cols, device=kernel_device)
    outputs = _launch.launch_cross_entropy_forward(logits, target, weight, 1.0, None, False)
    mean, _ = _launch.launch_cross_entropy_loss(
        logits, target, None, None, torch.float32, True, -100, "mean", 1.0
    )

    baseline = F.cross_entropy(logits, target, label_smoothing=1.0)
    exact = F.cross_entropy(logits.double(), target, label_smoothing=1.0)
    assert_as_accurate_as_torch(outputs.smooth[0] / n_cols, baseline, exact)
    assert_as_accurate_as_torch(mean, baseline, exact)
