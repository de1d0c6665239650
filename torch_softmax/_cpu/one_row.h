/* Rows one by one: the classes of a row make up whole vectors. */

#ifndef TORCH_SOFTMAX_ONE_ROW_H
#define TORCH_SOFTMAX_ONE_ROW_H

#include <math.h>

#include "exponential.h"

/* numbers of which exponentials are taken at once */
#define VECTOR 16
/* that are added up in float32 before their sum is in float64; whole vectors */
#define TERMS 1024

/* e = exp(x - largest), which may be x, and their sum; n is a multiple of VECTOR */
INLINE float exponentials(const float *x, float largest, float *e, int64_t n)
{
    /* added up in pairs: a compiler that is left to add a vector up does so one by one */
    float sums[VECTOR] = {0};
    for (int64_t begin = 0; begin < n; begin += VECTOR)
#pragma omp simd
        for (int64_t i = 0; i < VECTOR; i++) {
            e[begin + i] = exp_below(x[begin + i] - largest);
            sums[i] += e[begin + i];
        }
    for (int64_t i = 0; i < 8; i++)
        sums[i] += sums[8 + i];
    for (int64_t i = 0; i < 4; i++)
        sums[i] += sums[4 + i];
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* of C classes; the rest of the last vector adds exp(-inf) = 0, since exponentials that are taken
   one by one cost as much as whole vectors */
INLINE double row_exponentials(const float *x, float largest, float *e, int64_t C)
{
    const int64_t whole = C / VECTOR * VECTOR, rest = C - whole;
    double total = 0;
    for (int64_t begin = 0; begin < whole; begin += TERMS) {
        const int64_t n = whole - begin < TERMS ? whole - begin : TERMS;
        total += exponentials(x + begin, largest, e + begin, n);
    }
    if (rest) {
        float last[VECTOR];
        for (int64_t i = 0; i < VECTOR; i++)
            last[i] = i < rest ? x[whole + i] : -INFINITY;
        total += exponentials(last, largest, last, VECTOR);
        memcpy(e + whole, last, sizeof(float) * rest);
    }
    return total;
}

/* sum(w * (x - largest)); a class of weight 0 adds none, whatever its logit */
INLINE double row_weighted(const Problem *p, const float *x, float largest)
{
    const int64_t C = p->n_classes;
    double total = 0;
    for (int64_t begin = 0; begin < C; begin += TERMS) {
        const int64_t end = begin + TERMS < C ? begin + TERMS : C;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = begin; c < end; c++) {
            const float w = weight_of(p, c);
            sum += w != 0 ? w * (x[c] - largest) : 0;
        }
        total += sum;
    }
    return total;
}

/* the loss of one row; its gradient, a vector of classes; scratch: classes */
INLINE double one_row(const Problem *p, int64_t row, float *scratch, int is_bfloat16, int is_strided)
{
    const int64_t C = p->n_classes, target = class_of(p, row), size = is_bfloat16 ? 2 : 4;
    const int64_t x_stride = is_strided ? p->logits.class_stride : 1;
    const int64_t dx_stride = is_strided ? p->dlogits.class_stride : 1;
    const char *in = (const char *)p->logits.data + offset(p, &p->logits, row) * size;
    char *dx = p->dlogits.data;
    if (dx)
        dx += offset(p, &p->dlogits, row) * size;
    if (target == NO_CLASS) {
        if (dx)
            for (int64_t c = 0; c < C; c++)
                store(dx, c * dx_stride, 0, is_bfloat16);
        return 0;
    }
    /* what lies side by side in float32 is computed with where it lies, which spares the cache */
    const int is_plain = !is_bfloat16 && !is_strided;
    const float *x = is_plain ? (const float *)in : scratch;
    float *e = is_plain && dx ? (float *)dx : scratch;
    float largest = load(in, 0, is_bfloat16);
#pragma omp simd reduction(max : largest)
    for (int64_t c = 0; c < C; c++) {
        const float value = load(in, c * x_stride, is_bfloat16);
        if (!is_plain)
            scratch[c] = value;
        largest = value > largest ? value : largest;
    }
    const float target_below = x[target] - largest;
    const double weighted_below = p->smooth_factor > 0 ? row_weighted(p, x, largest) : 0;
    const double total = row_exponentials(x, largest, e, C);
    const RowTerms terms = terms_of(p, target, largest, target_below, (float)total,
                                    (float)log(total), (float)weighted_below);
    if (!dx)
        return terms.loss;
    /* before it is rounded: the difference from 1 would be lost */
    float at_target = terms.a * e[target] - terms.b;
    if (p->smooth_factor > 0) {
        at_target -= terms.s * weight_of(p, target);
#pragma omp simd
        for (int64_t c = 0; c < C; c++)
            store(dx, c * dx_stride, terms.a * e[c] - terms.s * weight_of(p, c), is_bfloat16);
    } else {
#pragma omp simd
        for (int64_t c = 0; c < C; c++)
            store(dx, c * dx_stride, terms.a * e[c], is_bfloat16);
    }
    store(dx, target * dx_stride, at_target, is_bfloat16);
    return terms.loss;
}

#endif
