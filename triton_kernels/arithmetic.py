"""Elementwise device functions: exponential, logarithm, tanh and the softcap."""

from typing import NamedTuple

import triton
import triton.language as tl


class SoftCap(NamedTuple):
    """softcap(x) = cap * tanh(scale * x / cap), or scale * x where ``cap`` is None."""

    scale: float
    cap: float | None


@triton.constexpr_function
def compute_dtype(dtype):
    """What sums are accumulated in: float64 for itself, float32 for everything narrower."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def softcap(x, SOFTCAP: tl.constexpr):
    """cap * tanh(scale * x / cap), or scale * x without a cap."""
    x = x * SOFTCAP.scale
    if SOFTCAP.cap is not None:
        x = SOFTCAP.cap * tanh(x / SOFTCAP.cap)
    return x


@triton.jit
def softcap_grad(x, SOFTCAP: tl.constexpr):
    """Derivative of softcap at ``x``."""
    grad = tl.full((), SOFTCAP.scale, x.dtype)
    if SOFTCAP.cap is not None:
        # 1 - tanh**2 cancels near 1; this form does not
        decay = exp(-2.0 * tl.abs(x * SOFTCAP.scale / SOFTCAP.cap))
        grad = grad * (4.0 * decay / ((1.0 + decay) * (1.0 + decay)))
    return grad


@triton.jit
def exp(x):
    """exp(x); in float32 the rounding of x * log2(e) gives a relative error of 6e-8 * abs(x).

    The GPU's instruction flushes subnormal float32 results to 0; ``tl.exp`` spends four more
    instructions to keep them.
    """
    return tl.exp2(x * 1.4426950408889634) if x.dtype == tl.float32 else tl.exp(x)


@triton.jit
def exact_exp(x):
    """exp(x), exact to rounding."""
    y = exp(x)
    if x.dtype == tl.float32:
        # the rounding error of x * log2(e), where exp2 is not 0
        scaled = x * 1.4426950408889634
        lost = tl.fma(x, 1.9259629911266175e-8, tl.fma(x, 1.4426950408889634, -scaled))
        y = tl.where(x > -126.0, y * (1.0 + lost * 0.6931471805599453), y)
    return y


@triton.jit
def log(x):
    """log(x), exact to rounding; x must not be subnormal.

    On NVIDIA GPUs the error of ``tl.log`` in float32 grows by 2e-7 for every factor of 2 in x.
    """
    y = tl.log(x)
    if x.dtype == tl.float32:
        # x = 2**exponent * mantissa with mantissa in [sqrt(1/2), sqrt(2)), read from the bits of x
        bits = x.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        # log((1 + z) / (1 - z)) = 2 * (z + z**3 / 3 + z**5 / 5 + ...)
        z = (mantissa - 1.0) / (mantissa + 1.0)
        zz = z * z
        series = zz * (1 / 3 + zz * (1 / 5 + zz * (1 / 7 + zz * (1 / 9))))
        exact = exponent.to(tl.float32) * 0.6931471805599453 + (2.0 * z + 2.0 * z * series)
        # the series does not hold for 0, infinity and NaN
        y = tl.where((x > 0.0) & (x < float("inf")), exact, y)
    return y


@triton.jit
def tanh(x):
    """tanh(x), exact to rounding; Triton's own function does not run in the interpreter."""
    decay = exp(-2.0 * tl.abs(x))
    size = (1.0 - decay) / (1.0 + decay)
    y = tl.where(x < 0.0, -size, size)
    if x.dtype == tl.float32:
        # 1 - decay cancels near 0, where the Taylor series is exact to 2**-27
        xx = x * x
        series = 1.0 - xx * (1 / 3 - xx * (2 / 15 - xx * (17 / 315 - xx * (62 / 2835))))
        y = tl.where(xx < 0.0625, x * series, y)
    return y
