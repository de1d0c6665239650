"""Comparison of results with float64, allowing twice the error of PyTorch."""

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def assert_as_accurate_as_torch(actual: Tensor, baseline: Tensor, exact: Tensor) -> None:
    """Our error against float64 may not exceed twice that of PyTorch's own result.

    One rounding to the tested dtype is allowed besides; two to bfloat16, to which Triton's
    interpreter truncates where a GPU rounds. Infinities and NaN must lie where the exact result has
    them. In float64 itself there is no truth to measure by, and PyTorch's result stands for it.
    """
    assert actual.dtype == baseline.dtype, f"{actual.dtype} is not {baseline.dtype}"
    assert actual.shape == exact.shape, f"{actual.shape} is not {exact.shape}"
    if actual.dtype == torch.float64:
        torch.testing.assert_close(actual, exact, equal_nan=True)
        return
    finite = exact.isfinite()
    torch.testing.assert_close(actual[~finite].double(), exact[~finite], equal_nan=True)
    if not finite.any():
        return
    actual, baseline, exact = actual[finite], baseline[finite], exact[finite]
    assert actual.isfinite().all()
    # PyTorch overflows where it stores an intermediate result in float16, and that allows nothing
    baseline_error = torch.where(baseline.isfinite(), baseline.double() - exact, 0).abs().max()
    rounding = torch.finfo(actual.dtype).eps * (2 if actual.dtype == torch.bfloat16 else 1)
    allowed = 2 * (baseline_error + rounding * exact.abs().max())
    error = (actual.double() - exact).abs().max()
    assert error <= allowed, f"error {error:.2e} exceeds {allowed:.2e}"


def value_and_gradients(function, x, *args, **options):
    """``y = function(x, *args, **options)`` and its gradients.

    They are those of ``x`` and of each further argument that requires one. The upstream gradient of
    a scalar is 1, of others a different number for each element, of both signs, whose sum does not
    cancel.
    """

    def leaf(arg):
        return arg.detach().requires_grad_() if needs_gradient(arg) else arg

    x, args = x.detach().requires_grad_(), [leaf(arg) for arg in args]
    y = function(x, *args, **options)
    dy = 1.5 * torch.arange(y.numel(), device=y.device).view(y.shape).cos() - 0.5
    return y.detach(), *torch.autograd.grad(y, [x, *filter(needs_gradient, args)], dy.to(y))


def needs_gradient(x):
    return isinstance(x, Tensor) and x.requires_grad


def widened(x):
    """``x`` in float64 if it is a floating-point tensor."""
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


def assert_agrees(ours, theirs, *args, exact=None, **options):
    """Value and gradients of ``ours`` are as accurate as those of ``theirs``.

    The truth is ``exact`` in float64, which is ``theirs`` unless a module computes it.
    """
    wide_options = {name: widened(x) for name, x in options.items()}
    for actual, baseline, truth in zip(
        value_and_gradients(ours, *args, **options),
        value_and_gradients(theirs, *args, **options),
        value_and_gradients(exact or theirs, *map(widened, args), **wide_options),
        strict=True,
    ):
        assert_as_accurate_as_torch(actual, baseline, truth)
