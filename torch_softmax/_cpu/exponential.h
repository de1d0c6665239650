/* Exponential and logarithm, written so that a compiler takes them for whole vectors. */

#ifndef TORCH_SOFTMAX_EXPONENTIAL_H
#define TORCH_SOFTMAX_EXPONENTIAL_H

#include "rows.h"

/* exp(x) for x <= 0, to 1 ulp, and 0 where no normal number is left; the polynomial of Cephes' expf */
INLINE float exp_below(float x)
{
    const float to_integer = 12582912.0f; /* 1.5 * 2**23: what is added to it is rounded */
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
    /* n from -127, where the power is 0; NaN times whatever its bits give is NaN */
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* log(x) for x >= 1, to 1 ulp; the polynomial of Cephes' logf */
INLINE float log_above(float x)
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
    /* x - x: what is NaN stays NaN */
    return (p + f) + n * 0.693359375f + (x - x);
}

#endif
