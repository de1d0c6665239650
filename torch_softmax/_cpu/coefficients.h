/* Losses and gradient coefficients of each row. Included once for each REAL. */

INLINE void NAME(store_losses)(const Problem *p, int64_t first, int64_t n, const REAL *losses)
{
    for (int64_t i = 0; p->rows.loss && i < n; i++)
        NAME(store)(p->rows.loss, p->loss_type, first + i, losses[i]);
}

/* the sum of the losses of a tile's rows; sets the coefficients of their gradients */
INLINE double NAME(loss_terms)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const REAL nll_factor = (REAL)p->nll_factor, smooth_factor = (REAL)p->smooth_factor;
    const REAL z_loss = (REAL)p->z_loss, weight_sum = (REAL)p->weight_sum;
    const REAL scale = (REAL)(p->gradient_scale * p->logit_scale);
    const REAL *dloss = p->rows.dloss ? (const REAL *)p->rows.dloss + first : NULL;
    REAL losses[MAX_WIDTH], factors[MAX_WIDTH];
    for (int64_t i = 0; i < N_VALUES(t); i++)
        factors[i] = dloss && i < t->n_rows ? scale * dloss[i] : scale;
#pragma omp simd
    for (int64_t i = 0; i < N_VALUES(t); i++) {
        const REAL log_sum = t->log_sum[i], lse = t->row_max[i] + log_sum;
        const REAL factor = factors[i], of_nll = nll_factor * t->target_logit_weight[i];
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
        /* selected, not multiplied: an ignored row may be NaN, and the factor of a mean of no row
           infinite */
        const int is_counted = t->is_counted[i] != 0;
        losses[i] = is_counted ? loss : 0;
        t->a[i] = is_counted ? of_lse * factor / t->sum[i] : 0;
        t->b[i] = is_counted ? of_nll * factor : 0;
        t->s[i] = is_counted ? smooth_factor * factor : 0;
    }
    NAME(store_losses)(p, first, t->n_rows, losses);
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < N_VALUES(t); i++)
        total += (double)losses[i];
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

/* coefficients passed by the caller */
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
