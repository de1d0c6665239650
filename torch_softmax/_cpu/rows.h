/* Rows of logits and of their gradient, as they lie in memory, and what is asked about them.

   x is a logit, m the largest of its row, total = sum(exp(x - m)) and lse = m + log(total). A row
   of class t that is not ignored costs

       nll_factor * w[t] * (lse - x[t]) + smooth_factor * sum(w * (lse - x)) + z_loss * lse**2

   with class weights w, 1 where there are none. Arithmetic is float32. Sums of many numbers are
   taken in float64, and in an order that does not depend on the threads. NaN and infinities take
   their course. A row's gradient is written when all of the row has been read, so that it may lie
   over the logits. */

#ifndef TORCH_SOFTMAX_ROWS_H
#define TORCH_SOFTMAX_ROWS_H

#include <stdint.h>
#include <string.h>

/* so that what is constant in a caller is constant here */
#define INLINE static inline __attribute__((always_inline))

/* the class of a row that costs nothing */
#define NO_CLASS (-1)

typedef struct {
    void *data;                                     /* NULL for none */
    int64_t outer_stride, row_stride, class_stride; /* in elements */
} Rows;

typedef struct {
    Rows logits, dlogits;
    int64_t n_rows, n_inner, n_classes; /* of n_rows each n_inner lie one row_stride apart */
    const int64_t *target;
    const float *class_weight; /* NULL for none */
    int64_t ignore_index;
    int is_mean, is_bfloat16, n_threads;
    float nll_factor, smooth_factor, z_loss;
    float total_weight;
    float share; /* what a row counts in the loss of all */
} Problem;

INLINE float load(const void *data, int64_t i, int is_bfloat16)
{
    if (!is_bfloat16)
        return ((const float *)data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void store(void *data, int64_t i, float x, int is_bfloat16)
{
    if (!is_bfloat16) {
        ((float *)data)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    /* to nearest, ties to even; NaN stays NaN, where rounding could carry it to zero */
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    ((uint16_t *)data)[i] = (uint16_t)(x == x ? rounded : 0x7fc0);
}

INLINE int64_t offset(const Problem *p, const Rows *rows, int64_t row)
{
    return row / p->n_inner * rows->outer_stride + row % p->n_inner * rows->row_stride;
}

INLINE float weight_of(const Problem *p, int64_t c)
{
    return p->class_weight ? p->class_weight[c] : 1.0f;
}

/* A class, or NO_CLASS. Targets have been checked; but another thread of the program may write to
   them meanwhile, so that each is read once, and none leads out of its row. */
INLINE int64_t class_of(const Problem *p, int64_t row)
{
    const int64_t target = *(const volatile int64_t *)(p->target + row);
    const int is_class = target >= 0 && target < p->n_classes;
    return is_class && target != p->ignore_index ? target : NO_CLASS;
}

/* dx = a * exp(x - m) - s * w, and b less at the target */
typedef struct {
    float loss, a, b, s;
} RowTerms;

INLINE RowTerms terms_of(const Problem *p, int64_t target, float largest, float target_below,
                         float total, float log_total, float weighted_below)
{
    const float lse = largest + log_total;
    const float of_nll = p->class_weight ? p->nll_factor * p->class_weight[target] : p->nll_factor;
    RowTerms row = {.loss = of_nll * (log_total - target_below),
                    .b = of_nll * p->share,
                    .s = p->smooth_factor * p->share};
    float of_lse = row.b;
    if (p->smooth_factor > 0) {
        row.loss += p->smooth_factor * (p->total_weight * log_total - weighted_below);
        of_lse += row.s * p->total_weight;
    }
    if (p->z_loss > 0) {
        row.loss += p->z_loss * lse * lse;
        of_lse += 2 * p->z_loss * lse * p->share;
    }
    row.a = of_lse / total;
    return row;
}

#endif
