/* The gradient of a tile. Included once for each REAL. */

/* x = (a - e * log(p)) * p */
INLINE void NAME(gradient_through_p)(NAME(Tile) *t, int with_e, int is_row)
{
    const int64_t n = N_INNER(t);
    for (int64_t outer = 0; outer < N_OUTER(t); outer++) {
        REAL *x = t->x + t->begin * WIDTH(t) + outer * n;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            const REAL below = x[i] - OF_ROW(t->row_max, i), exp_x = NAME(exp_below)(below);
            const REAL log_p = below - OF_ROW(t->log_sum, i);
            /* a class with p = 0 contributes 0, although its logarithm is -inf */
            const REAL of_log_p = with_e ? OF_ROW(t->e, i) * (log_p == -INFINITY ? 0 : log_p) : 0;
            const REAL of_p = OF_ROW(t->a, i) - of_log_p;
            x[i] = of_p == 0 ? 0 : of_p * exp_x;
        }
    }
}

/* out = (a * x - b * (onehot(t) or w * q) - s * w) * softcap_grad; out may be x. In a BACKWARD
   operation x is already the term through p. */
INLINE void NAME(gradient)(const Problem *p, const NAME(Tile) *t, REAL *out, int is_row)
{
    const int64_t n = N_INNER(t), begin = t->begin * WIDTH(t);
    const REAL *w = p->rows.s || p->smooth_factor > 0 ? p->class_weight : NULL;
    for (int64_t outer = 0; outer < N_OUTER(t); outer++) {
        const REAL *x = NAME(exponentials_of_step)(t, t->begin, is_row) + outer * n;
        const REAL *q = t->probabilities + begin + outer * n;
        REAL *dx = out + outer * n;
        if (p->operation == BACKWARD)
            memmove(dx, x, sizeof(REAL) * n);
        else
            /* a row with a == 0 has no gradient through p, even if its logits are NaN */
#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                dx[i] = OF_ROW(t->a, i) == 0 ? 0 : OF_ROW(t->a, i) * x[i];
        if (t->has_probabilities)
#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                dx[i] -= OF_ROW(t->b, i) * q[i];
        if (w)
#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                dx[i] -= OF_ROW(t->s, i) * (is_row ? w[begin + i] : w[outer]);
    }
    for (int64_t row = 0; row < N_VALUES(t); row++) {
        const int64_t i = NAME(target_index)(t, row, is_row) - begin;
        if (t->target[row] != NO_CLASS && i >= 0 && i < t->end * WIDTH(t) - begin)
            out[i] -= t->b[row];
    }
    if (p->softcap > 0)
#pragma omp simd
        for (int64_t i = 0; i < t->end * WIDTH(t) - begin; i++)
            out[i] = out[i] == 0 ? 0 : out[i] * t->softcap_grad[begin + i];
}
