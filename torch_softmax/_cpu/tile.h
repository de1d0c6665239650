/* The mathematics of a tile. Included once for each REAL, the type of the arithmetic.

   A tile holds x[step][width]. It is one row, of which each step takes `width` classes; or it is
   `width` rows side by side, with a step for each class: for rows too short for vectors, and for the
   class-strided layout. `is_row` tells which, as a constant of the caller. What belongs to a row has
   one element in the first case and `width` in the second. */

typedef struct {
    int64_t n_steps, width;
    int64_t n_rows; /* of the tile, at most width */
    /* x becomes exp(x - m), then the gradient; probabilities are times weights */
    REAL *x, *probabilities, *softcap_grad, *staging;
    int64_t target[MAX_WIDTH];
    REAL is_counted[MAX_WIDTH], target_logit_weight[MAX_WIDTH]; /* 0 or 1; w[t] */
    REAL row_max[MAX_WIDTH], sum[MAX_WIDTH], log_sum[MAX_WIDTH];
    /* sums over the classes of q, of q * (x - m), w * (x - m) and exp(x - m) * (x - m) */
    REAL target_weight[MAX_WIDTH], expected[MAX_WIDTH], weighted[MAX_WIDTH], moment[MAX_WIDTH];
    REAL a[MAX_WIDTH], b[MAX_WIDTH], s[MAX_WIDTH], e[MAX_WIDTH];
} NAME(Tile);

#include "memory.h"

/* the same number for every element of a row, or one for each row */
#define OF_ROW(values, i) (is_row ? (values)[0] : (values)[i])
#define N_VALUES(t) (is_row ? 1 : (t)->width)
#define WIDTH(t) ((t)->width & ~(int64_t)15)

INLINE void NAME(clear)(double *total, REAL *partials, int64_t width)
{
    memset(total, 0, sizeof(double) * width);
    memset(partials, 0, sizeof(REAL) * width);
}

/* adds up partial sums in float64, and clears them */
INLINE void NAME(flush)(double *total, REAL *partials, int64_t width)
{
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        total[i] += (double)partials[i];
        partials[i] = 0;
    }
}

INLINE void NAME(combine_sums)(const double *total, REAL *sums, int64_t width, int is_row)
{
    if (!is_row) {
        for (int64_t i = 0; i < width; i++)
            sums[i] = (REAL)total[i];
        return;
    }
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++)
        sum += total[i];
    sums[0] = (REAL)sum;
}

INLINE void NAME(scale_and_cap)(const Problem *p, NAME(Tile) *t, int is_row)
{
    const int64_t n = t->n_steps * WIDTH(t);
    REAL *x = t->x, *grad = t->softcap_grad;
    const REAL scale = (REAL)p->logit_scale, softcap = (REAL)p->softcap;
    if (softcap > 0) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            x[i] = softcap * NAME(tanh)(x[i] * scale / softcap, grad + i);
    } else if (scale != 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            x[i] *= scale;
    } else {
        return;
    }
    if (is_row)
        for (int64_t i = p->n_classes; i < n; i++)
            x[i] = -INFINITY;
}

INLINE void NAME(find_row_max)(NAME(Tile) *t, int is_row)
{
    const int64_t width = WIDTH(t);
    REAL max[MAX_WIDTH];
    memcpy(max, t->x, sizeof(REAL) * width);
    for (int64_t step = 1; step < t->n_steps; step++) {
        const REAL *x = t->x + step * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            max[i] = x[i] > max[i] ? x[i] : max[i];
    }
    if (is_row) {
        REAL largest = max[0];
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < width; i++)
            largest = max[i] > largest ? max[i] : largest;
        max[0] = largest;
    }
    /* -inf - -inf is NaN */
    for (int64_t i = 0; i < N_VALUES(t); i++)
        t->row_max[i] = max[i] == -INFINITY ? 0 : max[i];
}

/* sums of factor * (x - m); a class whose factor is 0 adds 0, even where x = -inf. `by_class`: the
   factors are one for each class. */
INLINE void NAME(sum_products)(NAME(Tile) *t, const REAL *factor, int by_class, REAL *sums, int is_row)
{
    const int64_t width = WIDTH(t);
    double total[MAX_WIDTH];
    REAL partials[MAX_WIDTH];
    NAME(clear)(total, partials, width);
    for (int64_t step = 0; step < t->n_steps; step++) {
        const REAL *x = t->x + step * width;
        const REAL *f = factor + step * (by_class && !is_row ? 1 : width);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            const REAL w = by_class && !is_row ? f[0] : f[i];
            partials[i] += w == 0 ? 0 : w * (x[i] - OF_ROW(t->row_max, i));
        }
        if (step % MAX_TERMS == MAX_TERMS - 1)
            NAME(flush)(total, partials, width);
    }
    NAME(flush)(total, partials, width);
    NAME(combine_sums)(total, sums, width, is_row);
}

INLINE void NAME(sum_probabilities)(NAME(Tile) *t, int is_row)
{
    const int64_t width = WIDTH(t);
    double total[MAX_WIDTH];
    memset(total, 0, sizeof(double) * width);
    for (int64_t step = 0; step < t->n_steps; step++)
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            total[i] += (double)t->probabilities[step * width + i];
    NAME(combine_sums)(total, t->target_weight, width, is_row);
}

/* x = exp(x - m), their sums, and with_entropy those of exp(x - m) * (x - m) */
INLINE void NAME(exponentials)(NAME(Tile) *t, int with_entropy, int is_row)
{
    const int64_t width = WIDTH(t);
    double total[MAX_WIDTH], moment[MAX_WIDTH];
    REAL partials[MAX_WIDTH], moments[MAX_WIDTH];
    NAME(clear)(total, partials, width);
    if (with_entropy)
        NAME(clear)(moment, moments, width);
    for (int64_t step = 0; step < t->n_steps; step++) {
        REAL *x = t->x + step * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            const REAL below = x[i] - OF_ROW(t->row_max, i), e = NAME(exp_below)(below);
            x[i] = e;
            partials[i] += e;
            if (with_entropy)
                moments[i] += e == 0 ? 0 : e * below;
        }
        if (step % MAX_TERMS == MAX_TERMS - 1) {
            NAME(flush)(total, partials, width);
            if (with_entropy)
                NAME(flush)(moment, moments, width);
        }
    }
    NAME(flush)(total, partials, width);
    NAME(combine_sums)(total, t->sum, width, is_row);
    if (with_entropy) {
        NAME(flush)(moment, moments, width);
        NAME(combine_sums)(moment, t->moment, width, is_row);
    }
    for (int64_t i = 0; i < N_VALUES(t); i++)
        t->log_sum[i] = NAME(log_above)(t->sum[i]);
}

/* the first index of the largest logit; NaN counts as largest */
INLINE int64_t NAME(prediction)(const Problem *p, const NAME(Tile) *t, int64_t row, int is_row)
{
    const int64_t stride = is_row ? 1 : t->width;
    const REAL *x = t->x + row, max = t->row_max[row];
    int64_t first = p->n_classes;
    for (int64_t c = p->n_classes - 1; c >= 0; c--)
        first = x[c * stride] == max ? c : first;
    for (int64_t c = p->n_classes - 1; c >= 0; c--)
        first = x[c * stride] != x[c * stride] ? c : first;
    return first < p->n_classes ? first : 0;
}

INLINE int64_t NAME(target_index)(const NAME(Tile) *t, int64_t row, int is_row)
{
    return is_row ? t->target[0] : t->target[row] * t->width + row;
}

/* targets, and what they contribute: classes are read here, probabilities are in the tile */
INLINE void NAME(load_targets)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const REAL *w = p->class_weight;
    for (int64_t row = 0; row < N_VALUES(t); row++) {
        const int64_t target = row < t->n_rows && p->target ? class_of(p, first + row) : NO_CLASS;
        t->target[row] = target;
        t->is_counted[row] = p->target ? target != NO_CLASS : row < t->n_rows;
        t->target_logit_weight[row] = w && target != NO_CLASS ? w[target] : 1;
    }
}

/* row_max, and the sums in which each logit is relative to it; x becomes exp(x - row_max) */
INLINE void NAME(statistics)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    NAME(find_row_max)(t, is_row);
    if (p->rows.prediction)
        for (int64_t row = 0; row < t->n_rows; row++)
            p->rows.prediction[first + row] = NAME(prediction)(p, t, row, is_row);
    if (t->probabilities) {
        NAME(sum_probabilities)(t, is_row);
        NAME(sum_products)(t, t->probabilities, 0, t->expected, is_row);
    } else {
        for (int64_t row = 0; row < N_VALUES(t); row++) {
            const int has_class = t->target[row] != NO_CLASS;
            const int64_t i = has_class ? NAME(target_index)(t, row, is_row) : 0;
            t->target_weight[row] = 1;
            t->expected[row] = has_class ? t->x[i] - t->row_max[row] : 0;
        }
    }
    if (p->rows.smooth || p->smooth_factor > 0)
        NAME(sum_products)(t, p->class_weight, 1, t->weighted, is_row);
    if (p->rows.entropy)
        NAME(exponentials)(t, 1, is_row);
    else
        NAME(exponentials)(t, 0, is_row);
}

/* the loss of the tile's rows, and the coefficients of their gradients */
INLINE double NAME(loss_terms)(const Problem *p, NAME(Tile) *t, int is_row)
{
    const REAL nll_factor = (REAL)p->nll_factor, smooth_factor = (REAL)p->smooth_factor;
    const REAL z_loss = (REAL)p->z_loss, weight_sum = (REAL)p->weight_sum;
    const REAL factor = (REAL)(p->inverse_denominator * p->logit_scale);
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < N_VALUES(t); i++) {
        const REAL log_sum = t->log_sum[i], lse = t->row_max[i] + log_sum;
        const REAL of_nll = nll_factor * t->target_logit_weight[i];
        REAL loss = of_nll * (t->target_weight[i] * log_sum - t->expected[i]);
        REAL of_lse = of_nll * t->target_weight[i];
        if (smooth_factor > 0) {
            loss += smooth_factor * (weight_sum * log_sum - t->weighted[i]);
            of_lse += smooth_factor * weight_sum;
        }
        if (z_loss > 0) {
            loss += z_loss * lse * lse;
            of_lse += 2 * z_loss * lse;
        }
        /* not as products: an ignored row may hold NaN, and the mean of no row an infinite factor */
        const int is_counted = t->is_counted[i] != 0;
        total += (double)(is_counted ? loss : 0);
        t->a[i] = is_counted ? of_lse * factor / t->sum[i] : 0;
        t->b[i] = is_counted ? of_nll * factor : 0;
        t->s[i] = is_counted ? smooth_factor * factor : 0;
    }
    return total;
}

INLINE void NAME(store_statistics)(const Problem *p, const NAME(Tile) *t, int64_t first)
{
    const RowTensors *out = &p->rows;
    for (int64_t i = 0; i < t->n_rows; i++) {
        const int64_t row = first + i;
        const REAL log_sum = t->log_sum[i], row_max = t->row_max[i];
        const int has_nan = log_sum != log_sum && row_max != INFINITY;
        ((REAL *)out->nll)[row] = t->target_weight[i] * log_sum - t->expected[i];
        ((REAL *)out->lse)[row] = row_max + log_sum;
        ((REAL *)out->softmax_stats)[2 * row] = has_nan ? log_sum : row_max;
        ((REAL *)out->softmax_stats)[2 * row + 1] = log_sum;
        if (out->smooth)
            ((REAL *)out->smooth)[row] = (REAL)p->weight_sum * log_sum - t->weighted[i];
        if (out->target_weight)
            ((REAL *)out->target_weight)[row] = t->target_weight[i];
        if (out->entropy)
            ((REAL *)out->entropy)[row] = log_sum - t->moment[i] / t->sum[i];
    }
}

/* coefficients that the caller gives; x = p, or with e the whole gradient through p */
INLINE void NAME(load_coefficients)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const RowTensors *in = &p->rows;
    const REAL scale = (REAL)p->logit_scale;
    for (int64_t i = 0; i < N_VALUES(t); i++) {
        const int64_t row = first + (i < t->n_rows ? i : 0);
        const REAL is_counted = i < t->n_rows;
        t->row_max[i] = ((const REAL *)in->softmax_stats)[2 * row];
        t->log_sum[i] = ((const REAL *)in->softmax_stats)[2 * row + 1];
        const REAL inverse_sum = NAME(exp_below)(-t->log_sum[i]), a = ((const REAL *)in->a)[row];
        t->a[i] = a == 0 ? 0 : is_counted * scale * a * inverse_sum;
        t->b[i] = is_counted * scale * ((const REAL *)in->b)[row];
        t->s[i] = in->s ? is_counted * scale * ((const REAL *)in->s)[row] : 0;
        const REAL e = in->e ? ((const REAL *)in->e)[row] : 0;
        t->e[i] = e == 0 ? 0 : is_counted * scale * e * inverse_sum;
    }
}

INLINE void NAME(relative_exponentials)(NAME(Tile) *t, int with_e, int is_row)
{
    const int64_t width = WIDTH(t);
    for (int64_t step = 0; step < t->n_steps; step++) {
        REAL *x = t->x + step * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            const REAL below = x[i] - OF_ROW(t->row_max, i), exp_x = NAME(exp_below)(below);
            const REAL log_p = below - OF_ROW(t->log_sum, i);
            /* p = 0 counts as 0, whatever its logarithm */
            const REAL of_log_p = OF_ROW(t->e, i) * (log_p == -INFINITY ? 0 : log_p);
            const REAL of_p = OF_ROW(t->a, i) - of_log_p;
            x[i] = !with_e ? exp_x : of_p == 0 ? 0 : of_p * exp_x;
        }
    }
    if (with_e)
        for (int64_t i = 0; i < N_VALUES(t); i++)
            t->a[i] = 1;
}

/* x = a * x - b * (onehot(t) or w * q) - s * w, times the softcap's derivative */
INLINE void NAME(gradient)(const Problem *p, NAME(Tile) *t, int is_row)
{
    const int64_t width = WIDTH(t);
    const REAL *w = p->rows.s || p->smooth_factor > 0 ? p->class_weight : NULL;
    for (int64_t step = 0; step < t->n_steps; step++) {
        REAL *x = t->x + step * width;
        /* a row whose a is 0 has no gradient through its logits, even if they are NaN */
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            x[i] = OF_ROW(t->a, i) == 0 ? 0 : OF_ROW(t->a, i) * x[i];
        if (t->probabilities)
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                x[i] -= OF_ROW(t->b, i) * t->probabilities[step * width + i];
        if (w && is_row)
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                x[i] -= t->s[0] * w[step * width + i];
        if (w && !is_row)
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                x[i] -= t->s[i] * w[step];
    }
    for (int64_t row = 0; row < N_VALUES(t); row++)
        if (t->target[row] != NO_CLASS)
            t->x[NAME(target_index)(t, row, is_row)] -= t->b[row];
    if (p->softcap > 0)
#pragma omp simd
        for (int64_t i = 0; i < t->n_steps * width; i++)
            t->x[i] = t->x[i] == 0 ? 0 : t->x[i] * t->softcap_grad[i];
}

INLINE void NAME(load_probabilities)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const int64_t width = WIDTH(t);
    const REAL *w = p->class_weight;
    NAME(load_rows)(p, t, &p->probabilities, first, t->probabilities, 0, is_row);
    /* weights of 1 are there for the smoothing alone */
    for (int64_t step = 0; w && step < t->n_steps; step++)
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            t->probabilities[step * width + i] *= is_row ? w[step * width + i] : w[step];
}

/* all that is asked of a tile: the loss of its rows */
INLINE double NAME(tile)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    NAME(load_targets)(p, t, first, is_row);
    if (is_row && p->operation == LOSS && t->is_counted[0] == 0) {
        if (p->dlogits.data) {
            memset(t->x, 0, sizeof(REAL) * p->n_classes);
            NAME(store_rows)(p, t, &p->dlogits, first, t->x, is_row);
        }
        return 0;
    }
    NAME(load_rows)(p, t, &p->logits, first, t->x, is_row ? -INFINITY : 0, is_row);
    NAME(scale_and_cap)(p, t, is_row);
    if (p->probabilities.data)
        NAME(load_probabilities)(p, t, first, is_row);
    double loss = 0;
    if (p->operation == BACKWARD) {
        NAME(load_coefficients)(p, t, first, is_row);
        if (p->rows.e)
            NAME(relative_exponentials)(t, 1, is_row);
        else
            NAME(relative_exponentials)(t, 0, is_row);
    } else {
        NAME(statistics)(p, t, first, is_row);
        if (p->operation == FORWARD)
            NAME(store_statistics)(p, t, first);
        else
            loss = NAME(loss_terms)(p, t, is_row);
    }
    if (p->dlogits.data) {
        NAME(gradient)(p, t, is_row);
        NAME(store_rows)(p, t, &p->dlogits, first, t->x, is_row);
    }
    return loss;
}

/* the rows of a unit, tile by tile */
FOR_EACH_PROCESSOR
static double NAME(unit)(const Problem *p, const Schedule *schedule, int64_t first, int64_t n_rows,
                         void *scratch)
{
    const int64_t size = schedule->n_steps * schedule->width;
    NAME(Tile) t;
    t.n_steps = schedule->n_steps;
    t.width = schedule->width;
    t.x = scratch;
    t.softcap_grad = t.x + size;
    t.probabilities = p->probabilities.data ? t.x + 2 * size : NULL;
    t.staging = t.x + 3 * size;
    double loss = 0;
    for (int64_t row = 0; row < n_rows; row += schedule->tile_rows) {
        const int64_t left = n_rows - row;
        t.n_rows = left < schedule->tile_rows ? left : schedule->tile_rows;
        loss += schedule->tile_rows == 1 ? NAME(tile)(p, &t, first + row, 1)
                                         : NAME(tile)(p, &t, first + row, 0);
    }
    return loss;
}
