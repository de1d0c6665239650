"""How results are judged: against float64, by the error that PyTorch itself makes."""

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
