/* Rows of tensors in memory, their element types, and what is computed from them.

   x is a logit, scaled and capped; m is the maximum of its row and lse = m + log(sum(exp(x - m))).
   With class weights w, target class t and target probabilities q, a row has

       nll = lse - x[t], or sum(w * q * (lse - x))
       smooth = sum(w * (lse - x))
       loss = nll_factor * w[t] * nll + smooth_factor * smooth + z_loss * lse**2

   (w[t] is 1 for probabilities, whose nll has the weights). Its gradient in x is

       a * exp(x - m) - b * (onehot(t) or w * q) - s * w

   Arithmetic is in float32, in float64 for float64. Sums over classes and rows end in float64, in an
   order that does not depend on the number of threads. A row's gradient is written after all of the
   row has been read, so that it may overwrite the logits. */

#ifndef TORCH_SOFTMAX_ROWS_H
#define TORCH_SOFTMAX_ROWS_H

#include "elementary.h"

/* no tensor has more batch axes of at least two rows: int64 could not count its rows */
#define MAX_AXES 63
/* partials per row, summed step by step; a multiple of every vector length */
#define N_PARTIALS 16

typedef enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, INT64, N_TYPES } Type;

static const int TYPE_BYTES[N_TYPES] = {4, 8, 2, 2, 8};

typedef struct {
    char *data; /* NULL for no tensor */
    Type type;
    int64_t strides[MAX_AXES], class_stride; /* in elements; axis 0 is the innermost */
} Rows;

typedef enum { LOSS, FORWARD, BACKWARD } Operation;

typedef enum { OK, OUT_OF_MEMORY, BAD_TARGET } Status;

/* one entry per row; float64 for float64, else float32; NULL disables an output or input */
typedef struct {
    void *nll, *smooth, *target_weight, *lse, *entropy, *softmax_stats, *a, *b, *s, *e, *dloss;
    int64_t *prediction;
    void *loss; /* of the type loss_type */
} RowTensors;

typedef struct {
    Operation operation;
    Rows logits, dlogits, probabilities;
    int64_t n_rows, n_classes, sizes[MAX_AXES]; /* rows of each batch axis */
    int n_axes;
    const int64_t *target;              /* NULL for probabilities and for no rows */
    void *class_weight; /* in the type of the arithmetic, padded with zeros; NULL for none */
    double weight_sum;
    int64_t ignore_index;
    int has_ignore_index, is_mean, has_denominator, n_threads;
    double denominator, dloss; /* dloss: a factor of the gradient, like that of each row */
    double logit_scale, softcap; /* 0 for no softcap */
    double nll_factor, smooth_factor, z_loss, gradient_scale;
    RowTensors rows;
    Type loss_type;
} Problem;

INLINE float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint32_t bits_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of_half(uint16_t half)
{
    /* the exponent's bias differs by 112; the product is exact for subnormal numbers too */
    const uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t finite = bits_of_float(float_of_bits(magnitude) * 0x1p112f);
    return float_of_bits((magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite) | sign);
}

/* to nearest, ties to even */
INLINE uint16_t half_of_float(float x)
{
    const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, twice = bits + bits;
    /* overflows to infinity where float16 does; the second addition rounds off the excess bits */
    float base = fabsf(x) * 0x1p112f * 0x1p-110f;
    uint32_t bias = twice & 0xff000000;
    bias = bias < 0x71000000 ? 0x71000000 : bias;
    base += float_of_bits((bias >> 1) + 0x07800000);
    const uint32_t rounded = bits_of_float(base);
    const uint32_t magnitude = (rounded >> 13 & 0x7c00) + (rounded & 0x0fff);
    return (uint16_t)(sign | (twice > 0xff000000 ? 0x7e00 : magnitude));
}

/* to nearest, ties to even; NaN stays NaN, where rounding could carry it to zero */
INLINE uint16_t bfloat16_of_float(float x)
{
    const uint32_t bits = bits_of_float(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7fc0);
}

INLINE int64_t offset_of(const Problem *p, const Rows *rows, int64_t row)
{
    int64_t offset = 0;
    for (int axis = 0; axis < p->n_axes - 1; axis++) {
        offset += row % p->sizes[axis] * rows->strides[axis];
        row /= p->sizes[axis];
    }
    return offset + row * rows->strides[p->n_axes - 1];
}

/* Computes the loss, or the results in memory. A target that is not a class is stored, and then
   nothing else is written. */
Status run_cross_entropy(Problem *p, double *loss, int64_t *bad_target);
double load_number(const void *data, Type type);
void store_number(void *data, Type type, double x);
void find_tile_shape(const Problem *p, int64_t shape[2]);

#define NO_CLASS (-1)

/* The class of a row, or NO_CLASS. Another thread of the program may change targets after they were
   checked, so each is read once and checked again before it is used as an index. */
INLINE int64_t class_of(const Problem *p, int64_t row)
{
    const int64_t target = *(const volatile int64_t *)(p->target + row);
    const int is_ignored = p->has_ignore_index && target == p->ignore_index;
    return target >= 0 && target < p->n_classes && !is_ignored ? target : NO_CLASS;
}

#endif
