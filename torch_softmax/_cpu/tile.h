/* The mathematics of a tile. Included once for each REAL, the type of the arithmetic.

   A tile is x[step][width]. With `is_row`, a constant of the caller, it is one row, and each step is
   N_PARTIALS classes. Otherwise it is `width` rows side by side, and each step is one class: for rows
   too short for vectors, and for the class-strided layout. Sums and maxima run over the steps, with
   N_PARTIALS of them side by side. Values per row have one element in the first case and `width`
   elements in the second. A long row does not fit the first-level cache, so passes over it take a
   range of steps at a time. */

typedef struct {
    int64_t n_steps, width;
    int64_t n_rows; /* rows in the tile, at most width */
    int64_t begin, end; /* the current range of steps */
    /* x becomes exp(x - m); probabilities include the class weights; staging buffers loads and
       stores */
    REAL *x, *probabilities, *softcap_grad, *staging;
    int has_probabilities;
    /* the first steps of a long row are read from memory, and become exponentials in the memory of
       the gradient; the others do so in x */
    const REAL *logits_memory;
    REAL *gradient_memory;
    int64_t n_in_memory;
    int64_t target[MAX_WIDTH];
    REAL is_counted[MAX_WIDTH], target_logit_weight[MAX_WIDTH]; /* 0 or 1; w[t] */
    REAL row_max[MAX_WIDTH], sum[MAX_WIDTH], log_sum[MAX_WIDTH];
    /* sums over the classes of q, of q * (x - m), w * (x - m) and exp(x - m) * (x - m) */
    REAL target_weight[MAX_WIDTH], expected[MAX_WIDTH], weighted[MAX_WIDTH], moment[MAX_WIDTH];
    REAL a[MAX_WIDTH], b[MAX_WIDTH], s[MAX_WIDTH], e[MAX_WIDTH];
} NAME(Tile);

/* Elementwise passes treat the steps of one row as a single step. */
#define N_OUTER(t) (is_row ? 1 : (t)->end - (t)->begin)
#define N_INNER(t) (is_row ? ((t)->end - (t)->begin) * N_PARTIALS : (t)->width)

/* the value of the row of element i */
#define OF_ROW(values, i) (is_row ? (values)[0] : (values)[i])
#define N_VALUES(t) (is_row ? 1 : (t)->width)
/* a constant if is_row */
#define WIDTH(t) (is_row ? N_PARTIALS : (t)->width)
#define FOR_EACH_PARTIAL(i) for (int64_t i = 0; i < N_PARTIALS; i++)

#include "memory.h"
#include "statistics.h"
#include "coefficients.h"
#include "gradient.h"

INLINE void NAME(load_probabilities)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const int64_t n = N_INNER(t), begin = t->begin * WIDTH(t);
    const REAL *w = p->class_weight;
    NAME(load_rows)(p, t, &p->probabilities, first, t->probabilities, 0, is_row);
    for (int64_t outer = 0; w && outer < N_OUTER(t); outer++)
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            t->probabilities[begin + outer * n + i] *= is_row ? w[begin + i] : w[outer];
}

INLINE void NAME(load_logits)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    NAME(load_rows)(p, t, &p->logits, first, t->x, is_row ? -INFINITY : 0, is_row);
    NAME(scale_and_cap)(p, t, is_row);
    if (t->has_probabilities)
        NAME(load_probabilities)(p, t, first, is_row);
}

/* where to write a row's gradient directly, or NULL where it is converted first */
INLINE REAL *NAME(gradient_in_memory)(const Problem *p, int64_t first)
{
    const Rows *rows = &p->dlogits;
    const int is_direct = rows->data && rows->type == REAL_TYPE && rows->class_stride == 1;
    return is_direct ? (REAL *)rows->data + offset_of(p, rows, first) : NULL;
}

/* stores to memory directly where the range ends within the row */
INLINE void NAME(store_gradient)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const Rows *rows = &p->dlogits;
    const int64_t n_whole = p->n_classes / N_PARTIALS;
    REAL *dx = is_row && t->begin < n_whole ? NAME(gradient_in_memory)(p, first) : NULL;
    if (dx) {
        t->end = t->end < n_whole ? t->end : n_whole;
        NAME(gradient)(p, t, dx + t->begin * N_PARTIALS, is_row);
        return;
    }
    dx = is_row ? t->staging : t->x;
    NAME(gradient)(p, t, dx, is_row);
    NAME(store_rows)(p, t, rows, first, dx, is_row);
}

#define FOR_EACH_RANGE(t)                                                                 \
    for (t->begin = 0; t->end = is_row && t->begin + RANGE_STEPS < t->n_steps             \
                                    ? t->begin + RANGE_STEPS                              \
                                    : t->n_steps,                                         \
        t->begin < t->n_steps;                                                            \
         t->begin = t->end)

INLINE void NAME(backward)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    NAME(load_coefficients)(p, t, first, is_row);
    FOR_EACH_RANGE(t) {
        NAME(load_logits)(p, t, first, is_row);
        if (p->rows.e)
            NAME(gradient_through_p)(t, 1, is_row);
        else
            NAME(gradient_through_p)(t, 0, is_row);
        NAME(store_gradient)(p, t, first, is_row);
    }
}

INLINE void NAME(store_zeros)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    memset(t->staging, 0, sizeof(REAL) * RANGE_STEPS * N_PARTIALS);
    FOR_EACH_RANGE(t)
        NAME(store_rows)(p, t, &p->dlogits, first, t->staging, is_row);
}

/* Loads logits and finds row_max. An operation of at most two passes over logits of type REAL reads
   them from memory instead of loading them into the tile. */
INLINE void NAME(load_and_find_row_max)(const Problem *p, NAME(Tile) *t, int64_t first, int is_row)
{
    const Rows *rows = &p->logits;
    const int is_plain = rows->type == REAL_TYPE && rows->class_stride == 1 && p->softcap == 0 &&
                         p->logit_scale == 1 && !p->probabilities.data;
    const int has_two_passes = p->operation == LOSS && p->smooth_factor == 0;
    REAL max[MAX_WIDTH];
    for (int64_t i = 0; i < WIDTH(t); i++)
        max[i] = -INFINITY;
    if (is_row && is_plain && has_two_passes) {
        t->logits_memory = (const REAL *)rows->data + offset_of(p, rows, first);
        t->gradient_memory = NAME(gradient_in_memory)(p, first);
        t->n_in_memory = p->n_classes / N_PARTIALS;
    }
    FOR_EACH_RANGE(t) {
        if (t->begin < t->n_in_memory)
            t->end = t->n_in_memory;
        else
            NAME(load_logits)(p, t, first, is_row);
        NAME(update_row_max)(t, max, is_row);
    }
    NAME(combine_row_max)(t, max, is_row);
}

/* runs the operation on a tile; returns the sum of the losses of its rows */
INLINE double NAME(tile)(const Problem *p, NAME(Tile) *t, int64_t first, int is_backward,
                         int is_row)
{
    NAME(load_targets)(p, t, first, is_row);
    if (is_backward) {
        NAME(backward)(p, t, first, is_row);
        return 0;
    }
    if (is_row && p->operation == LOSS && t->is_counted[0] == 0) {
        if (p->dlogits.data)
            NAME(store_zeros)(p, t, first, is_row);
        NAME(store_losses)(p, first, 1, &(REAL){0});
        return 0;
    }
    NAME(load_and_find_row_max)(p, t, first, is_row);
    NAME(statistics)(p, t, first, is_row);
    if (p->operation == FORWARD) {
        NAME(store_statistics)(p, t, first);
        return 0;
    }
    const double loss = NAME(loss_terms)(p, t, first, is_row);
    if (p->dlogits.data)
        FOR_EACH_RANGE(t)
            NAME(store_gradient)(p, t, first, is_row);
    return loss;
}

/* runs the operation on the rows of a unit, tile by tile */
INLINE double NAME(unit)(const Problem *p, const Schedule *schedule, int64_t first, int64_t n_rows,
                         void *scratch, int is_backward, int is_row)
{
    const int64_t size = schedule->n_steps * schedule->width;
    NAME(Tile) t;
    t.n_steps = schedule->n_steps;
    t.width = schedule->width;
    t.n_in_memory = 0;
    t.x = scratch;
    t.softcap_grad = t.x + size;
    t.probabilities = t.x + 2 * size;
    t.has_probabilities = p->probabilities.data != NULL;
    t.staging = t.x + 3 * size; /* at least as large as a range */
    double loss = 0;
    for (int64_t row = 0; row < n_rows; row += schedule->tile_rows) {
        const int64_t left = n_rows - row;
        t.n_rows = left < schedule->tile_rows ? left : schedule->tile_rows;
        loss += NAME(tile)(p, &t, first + row, is_backward, is_row);
    }
    return loss;
}

/* four functions: a single one takes the compiler twice as long, and is slower with AVX-512 */
#define UNIT(name, is_backward, is_row)                                                   \
    FOR_EACH_PROCESSOR                                                                    \
    static double NAME(name)(const Problem *p, const Schedule *schedule, int64_t first,   \
                             int64_t n_rows, void *scratch)                               \
    {                                                                                     \
        return NAME(unit)(p, schedule, first, n_rows, scratch, is_backward, is_row);      \
    }
UNIT(forward_of_rows, 0, 0)
UNIT(forward_of_row, 0, 1)
UNIT(backward_of_rows, 1, 0)
UNIT(backward_of_row, 1, 1)
#undef UNIT

/* by is_backward and is_row */
static Unit *const NAME(units)[2][2] = {
    {NAME(forward_of_rows), NAME(forward_of_row)},
    {NAME(backward_of_rows), NAME(backward_of_row)},
};
