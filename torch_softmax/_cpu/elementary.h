/* Exponential, logarithm and hyperbolic tangent without branches, so that a compiler vectorizes
   loops over them. */

#ifndef TORCH_SOFTMAX_ELEMENTARY_H
#define TORCH_SOFTMAX_ELEMENTARY_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* inlined everywhere, so constant arguments of the caller become constants here */
#define INLINE static inline __attribute__((always_inline))

/* exp(x) for x <= 0, to 1 ulp, and 0 below the normal numbers; the polynomial of Cephes' expf */
INLINE float exp_below_float(float x)
{
    const float to_integer = 12582912.0f; /* 1.5 * 2**23: adding it rounds to an integer */
    x = x < -88.0f ? -88.0f : x;
    const float shifted = x * 1.44269504f + to_integer, n = shifted - to_integer;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    /* n = -127 gives the power 0; for NaN the power is arbitrary, but p is NaN */
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* the same in float64; the Taylor series to r**13, whose remainder is 2e-17 */
INLINE double exp_below_double(double x)
{
    const double to_integer = 6755399441055744.0; /* 1.5 * 2**52 */
    x = x < -709.1 ? -709.1 : x;
    const double shifted = x * 1.4426950408889634 + to_integer, n = shifted - to_integer;
    const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4338000000000000u + 1023u) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* log(x) for x >= 1, to 1 ulp, and -inf for 0; the polynomial of Cephes' logf */
INLINE float log_above_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    /* x = 2**n * (1 + f), with 1 + f from sqrt(1/2) to sqrt(2) */
    const int32_t n_bits = (int32_t)(bits - 0x3f3504f3u) & (int32_t)0xff800000;
    const uint32_t mantissa = bits - (uint32_t)n_bits;
    float f;
    memcpy(&f, &mantissa, sizeof f);
    f -= 1.0f;
    const float n = (float)(n_bits >> 23);
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const float square = f * f;
    p = p * f * square + n * -2.12194440e-4f - 0.5f * square;
    /* x - x keeps NaN */
    return x == 0 ? -INFINITY : (p + f) + n * 0.693359375f + (x - x);
}

/* the same in float64; the series of fdlibm's log */
INLINE double log_above_double(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint64_t offset = bits - 0x3fe6a09e667f3bcdu;
    const uint64_t mantissa = bits - (offset & 0xfff0000000000000u);
    double f, n;
    memcpy(&f, &mantissa, sizeof f);
    f -= 1.0;
    /* adds an integer below 2**52 to the mantissa of 2**52: AVX2 cannot convert 64-bit integers */
    const uint64_t n_bits = 0x4330000000000000u + (offset >> 52);
    memcpy(&n, &n_bits, sizeof n);
    n -= 4503599627370496.0;
    const double s = f / (2.0 + f), z = s * s, half_square = 0.5 * f * f;
    double p = 1.479819860511658591e-01;
    p = p * z + 1.531383769920937332e-01;
    p = p * z + 1.818357216161805012e-01;
    p = p * z + 2.222219843214978396e-01;
    p = p * z + 2.857142874366239149e-01;
    p = p * z + 3.999999999940941908e-01;
    p = p * z + 6.666666666666735130e-01;
    const double low = s * (half_square + p * z) + n * 1.90821492927058770002e-10;
    return x == 0 ? -INFINITY : n * 6.93147180369123816490e-01 - ((half_square - low) - f) + (x - x);
}

/* tanh(x) and its derivative, to 2 ulp. The derivative is 4 t / (1 + t)**2 with t = exp(-2 |x|),
   because 1 - tanh(x)**2 cancels. Near 0, where 1 - t cancels, tanh is an odd polynomial of Cephes. */
INLINE float tanh_float(float x, float *derivative)
{
    const float t = exp_below_float(-2.0f * fabsf(x)), z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    *derivative = 4.0f * t / ((1.0f + t) * (1.0f + t));
    return fabsf(x) < 0.625f ? p * z * x + x : copysignf((1.0f - t) / (1.0f + t), x);
}

INLINE double tanh_double(double x, double *derivative)
{
    const double t = exp_below_double(-2.0 * fabs(x)), z = x * x;
    double p = -9.64399179425052238628e-1, q = z + 1.12811678491632931402e2;
    p = p * z - 9.92877231001918586564e1;
    p = p * z - 1.61468768441708447952e3;
    q = q * z + 2.23548839060100448583e3;
    q = q * z + 4.84406305325125486048e3;
    *derivative = 4.0 * t / ((1.0 + t) * (1.0 + t));
    return fabs(x) < 0.625 ? p / q * z * x + x : copysign((1.0 - t) / (1.0 + t), x);
}

#endif
