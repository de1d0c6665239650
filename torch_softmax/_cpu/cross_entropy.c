/* Cross-entropy of rows of logits and its gradient, in one pass over the rows. */

#include "schedule.h"

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(u, v, ...) __builtin_shufflevector(u, v, __VA_ARGS__)
#else
#define SHUFFLE(u, v, ...) __builtin_shuffle(u, v, (NAME(Indices)){__VA_ARGS__})
#endif

#define REAL float
#define INDEX int32_t
#define REAL_TYPE FLOAT32
#define NAME(stem) stem##_float
#include "tile.h"
#undef REAL
#undef INDEX
#undef REAL_TYPE
#undef NAME
#define REAL double
#define INDEX int64_t
#define REAL_TYPE FLOAT64
#define NAME(stem) stem##_double
#include "tile.h"

FOR_EACH_PROCESSOR
static int64_t count_rows(const Problem *p, int64_t *n_bad)
{
    int64_t n_ignored = 0, bad = 0;
    const int64_t has_ignore_index = p->has_ignore_index, ignore_index = p->ignore_index;
    const uint64_t n_classes = p->n_classes;
    const int64_t *target = p->target;
#pragma omp simd reduction(+ : n_ignored, bad)
    for (int64_t row = 0; row < p->n_rows; row++) {
        const int64_t is_ignored = has_ignore_index & (target[row] == ignore_index);
        n_ignored += is_ignored;
        bad += ((uint64_t)target[row] >= n_classes) & !is_ignored;
    }
    *n_bad = bad;
    return p->n_rows - n_ignored;
}

/* the denominator of the mean; sets *bad to a row whose target is not a class */
static double denominator_of(const Problem *p, int64_t *bad)
{
    if (!p->target)
        return (double)p->n_rows;
    int64_t n_bad;
    const int64_t n_counted = count_rows(p, &n_bad);
    double total = 0;
    for (int64_t row = 0; row < p->n_rows && (n_bad || p->class_weight); row++) {
        const int64_t target = p->target[row];
        const int is_ignored = p->has_ignore_index && target == p->ignore_index;
        const int is_class = target >= 0 && target < p->n_classes;
        if (!is_class && !is_ignored) {
            *bad = row;
            return 0;
        }
        if (is_ignored || !p->class_weight)
            continue;
        total += p->logits.type == FLOAT64 ? ((const double *)p->class_weight)[target]
                                           : ((const float *)p->class_weight)[target];
    }
    return p->class_weight ? total : (double)n_counted;
}

Status run_cross_entropy(Problem *p, double *loss, int64_t *bad_target)
{
    int64_t bad = -1;
    if (p->operation != BACKWARD) {
        const double denominator = denominator_of(p, &bad);
        if (!p->has_denominator)
            p->denominator = p->is_mean ? denominator : 1;
    }
    if (bad >= 0) {
        *bad_target = p->target[bad];
        return BAD_TARGET;
    }
    p->gradient_scale = p->dloss / p->denominator;
    if (p->n_rows * p->n_classes < MIN_PARALLEL_ELEMENTS)
        p->n_threads = 1;
    double total = 0;
    if (p->n_rows > 0 && (p->logits.type == FLOAT64
                              ? run_units(p, units_double, sizeof(double), &total)
                              : run_units(p, units_float, sizeof(float), &total)))
        return OUT_OF_MEMORY;
    *loss = total / p->denominator;
    return OK;
}

double load_number(const void *data, Type type)
{
    return load_double(data, type, 0);
}

void store_number(void *data, Type type, double x)
{
    store_double(data, type, 0, x);
}

void find_tile_shape(const Problem *p, int64_t shape[2])
{
    const Schedule s = schedule_of(p);
    shape[0] = s.tile_rows;
    shape[1] = s.tile_rows == 1 ? s.n_steps * s.width : s.n_steps;
}
