/* Maxima and sums over the classes of a tile's rows. Included once for each REAL. */

/* adds the partial sums to a float64 total, and clears them */
INLINE void NAME(flush)(double *total, REAL *partials)
{
#pragma omp simd
    FOR_EACH_PARTIAL(i) {
        total[i] += (double)partials[i];
        partials[i] = 0;
    }
}

/* stores the sums of N_PARTIALS rows from `at` on, or of one row if is_row */
INLINE void NAME(combine_partials)(const double *total, REAL *sums, int64_t at, int is_row)
{
    double sum = 0;
    if (!is_row)
        FOR_EACH_PARTIAL(i) sums[at + i] = (REAL)total[i];
    else
        FOR_EACH_PARTIAL(i) sum += total[i];
    if (is_row)
        sums[0] = (REAL)sum;
}

INLINE void NAME(scale_and_cap)(const Problem *p, NAME(Tile) *t, int is_row)
{
    const int64_t begin = t->begin * WIDTH(t), n = N_OUTER(t) * N_INNER(t);
    REAL *x = t->x + begin, *grad = t->softcap_grad + begin;
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
        for (int64_t i = p->n_classes; i < t->end * N_PARTIALS; i++)
            t->x[i] = -INFINITY;
}

INLINE const REAL *NAME(logits_of_step)(const NAME(Tile) *t, int64_t step, int is_row)
{
    return (is_row && step < t->n_in_memory ? t->logits_memory : t->x) + step * WIDTH(t);
}

INLINE REAL *NAME(exponentials_of_step)(const NAME(Tile) *t, int64_t step, int is_row)
{
    const int is_in_memory = is_row && step < t->n_in_memory && t->gradient_memory;
    return (is_in_memory ? t->gradient_memory : t->x) + step * WIDTH(t);
}

/* max: the largest logit so far of each row, or of each partial of one row */
INLINE void NAME(update_row_max)(const NAME(Tile) *t, REAL *max, int is_row)
{
    const int64_t width = WIDTH(t);
    for (int64_t at = 0; at < width; at += N_PARTIALS) {
        /* two steps side by side: each maximum waits for the one before it */
        REAL even[N_PARTIALS], odd[N_PARTIALS];
        memcpy(even, max + at, sizeof even);
        memcpy(odd, max + at, sizeof odd);
        const REAL *x = NAME(logits_of_step)(t, t->begin, is_row) + at;
        int64_t step = t->begin;
        for (; step + 1 < t->end; step += 2, x += 2 * width) {
            const REAL *next = x + width;
#pragma omp simd
            FOR_EACH_PARTIAL(i) even[i] = x[i] > even[i] ? x[i] : even[i];
#pragma omp simd
            FOR_EACH_PARTIAL(i) odd[i] = next[i] > odd[i] ? next[i] : odd[i];
        }
        if (step < t->end)
#pragma omp simd
            FOR_EACH_PARTIAL(i) even[i] = x[i] > even[i] ? x[i] : even[i];
#pragma omp simd
        FOR_EACH_PARTIAL(i) max[at + i] = odd[i] > even[i] ? odd[i] : even[i];
    }
}

INLINE void NAME(combine_row_max)(NAME(Tile) *t, REAL *max, int is_row)
{
    if (is_row)
        FOR_EACH_PARTIAL(i) max[0] = max[i] > max[0] ? max[i] : max[0];
    /* -inf - -inf is NaN */
    for (int64_t i = 0; i < N_VALUES(t); i++)
        t->row_max[i] = max[i] == -INFINITY ? 0 : max[i];
}

/* sums of factor * (x - m); a class with factor 0 adds 0, even if x = -inf. `by_class`: there is one
   factor per class, not per element. */
INLINE void NAME(sum_products)(NAME(Tile) *t, const REAL *factor, int by_class, REAL *sums, int is_row)
{
    const int64_t width = WIDTH(t);
    for (int64_t at = 0; at < width; at += N_PARTIALS) {
        double total[N_PARTIALS] = {0};
        REAL partials[N_PARTIALS] = {0};
        for (int64_t step = 0; step < t->n_steps; step++) {
            const REAL *x = t->x + step * width + at;
            const REAL *f = factor + (by_class && !is_row ? step : step * width + at);
#pragma omp simd
            FOR_EACH_PARTIAL(i) {
                const REAL w = by_class && !is_row ? f[0] : f[i];
                partials[i] += w == 0 ? 0 : w * (x[i] - OF_ROW(t->row_max, at + i));
            }
            if (step % MAX_TERMS == MAX_TERMS - 1)
                NAME(flush)(total, partials);
        }
        NAME(flush)(total, partials);
        NAME(combine_partials)(total, sums, at, is_row);
    }
}

INLINE void NAME(sum_probabilities)(NAME(Tile) *t, int is_row)
{
    const int64_t width = WIDTH(t);
    for (int64_t at = 0; at < width; at += N_PARTIALS) {
        double total[N_PARTIALS] = {0};
        for (int64_t step = 0; step < t->n_steps; step++)
#pragma omp simd
            FOR_EACH_PARTIAL(i) total[i] += (double)t->probabilities[step * width + at + i];
        NAME(combine_partials)(total, t->target_weight, at, is_row);
    }
}

/* x = exp(x - m), their sums and, with_entropy, the sums of exp(x - m) * (x - m) */
INLINE void NAME(exponentials)(NAME(Tile) *t, int with_entropy, int is_row)
{
    const int64_t width = WIDTH(t);
    for (int64_t at = 0; at < width; at += N_PARTIALS) {
        double total[N_PARTIALS] = {0}, moment[N_PARTIALS] = {0};
        REAL max[N_PARTIALS];
        FOR_EACH_PARTIAL(i) max[i] = OF_ROW(t->row_max, at + i);
        for (int64_t begin = 0, n = 0; begin < t->n_steps; begin += n) {
            const int64_t end = is_row && begin < t->n_in_memory ? t->n_in_memory : t->n_steps;
            n = end - begin < MAX_TERMS ? end - begin : MAX_TERMS;
            REAL partials[N_PARTIALS] = {0}, moments[N_PARTIALS] = {0};
            const REAL *logits = NAME(logits_of_step)(t, begin, is_row) + at;
            REAL *x = NAME(exponentials_of_step)(t, begin, is_row) + at;
            for (int64_t step = 0; step < n; step++, x += width, logits += width)
#pragma omp simd
                FOR_EACH_PARTIAL(i) {
                    const REAL below = logits[i] - OF_ROW(max, i), e = NAME(exp_below)(below);
                    x[i] = e;
                    partials[i] += e;
                    if (with_entropy)
                        moments[i] += e == 0 ? 0 : e * below;
                }
            NAME(flush)(total, partials);
            if (with_entropy)
                NAME(flush)(moment, moments);
        }
        NAME(combine_partials)(total, t->sum, at, is_row);
        if (with_entropy)
            NAME(combine_partials)(moment, t->moment, at, is_row);
    }
#pragma omp simd
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

/* class index, counted flag and weight of each row; probabilities are loaded with the tile. A row
   whose dloss is 0 is not counted: it has no gradient. */
INLINE void NAME(load_targets)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const REAL *w = p->class_weight;
    const REAL *dloss = p->rows.dloss;
    for (int64_t row = 0; row < N_VALUES(t); row++) {
        const REAL of_row = dloss && row < t->n_rows ? dloss[first + row] : (REAL)p->dloss;
        const int exists = row < t->n_rows && of_row != 0;
        const int64_t target = exists && p->target ? class_of(p, first + row) : NO_CLASS;
        t->target[row] = target;
        t->is_counted[row] = p->target ? target != NO_CLASS : exists;
        t->target_logit_weight[row] = w && target != NO_CLASS ? w[target] : 1;
    }
}

/* the sums of each row, relative to row_max; x becomes exp(x - row_max) */
INLINE void NAME(statistics)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    if (p->rows.prediction)
        for (int64_t row = 0; row < t->n_rows; row++)
            p->rows.prediction[first + row] = NAME(prediction)(p, t, row, is_row);
    if (t->has_probabilities) {
        NAME(sum_probabilities)(t, is_row);
        NAME(sum_products)(t, t->probabilities, 0, t->expected, is_row);
    } else {
        for (int64_t row = 0; row < N_VALUES(t); row++) {
            const int has_class = t->target[row] != NO_CLASS;
            const int64_t i = has_class ? NAME(target_index)(t, row, is_row) : 0;
            t->target_weight[row] = 1;
            const REAL *x = is_row && i < t->n_in_memory * N_PARTIALS ? t->logits_memory : t->x;
            t->expected[row] = has_class ? x[i] - t->row_max[row] : 0;
        }
    }
    if (p->rows.smooth || p->smooth_factor > 0)
        NAME(sum_products)(t, p->class_weight, 1, t->weighted, is_row);
    if (p->rows.entropy)
        NAME(exponentials)(t, 1, is_row);
    else
        NAME(exponentials)(t, 0, is_row);
}
