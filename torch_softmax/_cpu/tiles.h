/* Rows side by side, a lane each: where the classes of one are too few for a vector, or where it is
   the rows that lie side by side in memory. */

#ifndef TORCH_SOFTMAX_TILES_H
#define TORCH_SOFTMAX_TILES_H

#include "exponential.h"

/* rows of a tile */
#define LANES 64
/* tiles that are moved at once, at the most */
#define MAX_TILES 8
/* of a lane, that are added up in float32 before their sum is in float64 */
#define LANE_TERMS 8

/* rows that lie one row_stride apart, a lane each, into tiles of scratch[class][lane], and back */
INLINE void load_tiles(const Problem *p, int64_t first, int n_rows, float *restrict scratch,
                       int is_bfloat16)
{
    const Rows *x = &p->logits;
    const int64_t C = p->n_classes, in = offset(p, x, first), size = is_bfloat16 ? 2 : 4;
    /* one after another as they lie in memory, so that it is read in long runs */
    if (x->class_stride == 1) {
        for (int row = 0; row < n_rows; row++)
            for (int64_t c = 0; c < C; c++)
                scratch[(row / LANES * C + c) * LANES + row % LANES] =
                    load(x->data, in + row * x->row_stride + c, is_bfloat16);
        return;
    }
    for (int64_t c = 0; c < C; c++)
        for (int begin = 0; begin < n_rows; begin += LANES) {
            const int n_lanes = n_rows - begin < LANES ? n_rows - begin : LANES;
            float *lanes = scratch + (begin * C + c * LANES);
            const int64_t at = in + begin * x->row_stride + c * x->class_stride;
            /* the next run of this class: the processor foresees a few such streams, not dozens */
            for (int64_t lane = 0; lane < LANES; lane += 64 / size)
                __builtin_prefetch((const char *)x->data + (at + MAX_TILES * LANES + lane) * size);
            for (int lane = 0; lane < n_lanes; lane++)
                lanes[lane] = load(x->data, at + lane * x->row_stride, is_bfloat16);
        }
}

INLINE void store_tiles(const Problem *p, int64_t first, int n_rows, const float *restrict scratch,
                        int is_bfloat16)
{
    const Rows *dx = &p->dlogits;
    const int64_t C = p->n_classes, out = offset(p, dx, first);
    if (dx->class_stride == 1) {
        for (int row = 0; row < n_rows; row++)
            for (int64_t c = 0; c < C; c++)
                store(dx->data, out + row * dx->row_stride + c,
                      scratch[(row / LANES * C + c) * LANES + row % LANES], is_bfloat16);
        return;
    }
    for (int64_t c = 0; c < C; c++)
        for (int begin = 0; begin < n_rows; begin += LANES) {
            const int n_lanes = n_rows - begin < LANES ? n_rows - begin : LANES;
            const float *lanes = scratch + (begin * C + c * LANES);
            const int64_t at = out + begin * dx->row_stride + c * dx->class_stride;
            for (int lane = 0; lane < n_lanes; lane++)
                store(dx->data, at + lane * dx->row_stride, lanes[lane], is_bfloat16);
        }
}

/* the loss of a tile; its gradient takes the place of its logits */
INLINE double one_tile(const Problem *p, int64_t first, int n_lanes, float *restrict scratch)
{
    const int64_t C = p->n_classes;
    int64_t target[LANES];
    float largest[LANES], target_below[LANES], log_total[LANES];
    double total[LANES] = {0}, weighted_below[LANES] = {0};
    for (int lane = 0; lane < n_lanes; lane++)
        target[lane] = class_of(p, first + lane);
    memcpy(largest, scratch, sizeof largest);
    for (int64_t c = 1; c < C; c++)
        for (int lane = 0; lane < LANES; lane++) {
            float value = scratch[c * LANES + lane];
            largest[lane] = value > largest[lane] ? value : largest[lane];
        }
    for (int lane = 0; lane < n_lanes; lane++)
        if (target[lane] != NO_CLASS)
            target_below[lane] = scratch[target[lane] * LANES + lane] - largest[lane];
    for (int64_t begin = 0; begin < C; begin += LANE_TERMS) {
        const int64_t end = begin + LANE_TERMS < C ? begin + LANE_TERMS : C;
        float sum[LANES] = {0}, weighted_sum[LANES] = {0};
        for (int64_t c = begin; c < end; c++) {
            const float w = p->smooth_factor > 0 ? weight_of(p, c) : 0;
            for (int lane = 0; lane < LANES; lane++) {
                float below = scratch[c * LANES + lane] - largest[lane];
                if (w != 0)
                    weighted_sum[lane] += w * below;
                float e = exp_below(below);
                scratch[c * LANES + lane] = e;
                sum[lane] += e;
            }
        }
        for (int lane = 0; lane < LANES; lane++)
            total[lane] += sum[lane];
        if (p->smooth_factor > 0)
            for (int lane = 0; lane < LANES; lane++)
                weighted_below[lane] += weighted_sum[lane];
    }
    for (int lane = 0; lane < LANES; lane++)
        log_total[lane] = log_above((float)total[lane]);
    double loss = 0;
    /* 0 where a lane is ignored or idle, but 0 * NaN is not 0 */
    float a[LANES] = {0}, b[LANES] = {0};
    for (int lane = 0; lane < n_lanes; lane++) {
        if (target[lane] == NO_CLASS)
            continue;
        RowTerms terms = terms_of(p, target[lane], largest[lane], target_below[lane],
                                  (float)total[lane], log_total[lane],
                                  (float)weighted_below[lane]);
        loss += terms.loss;
        a[lane] = terms.a;
        b[lane] = terms.b;
    }
    if (!p->dlogits.data)
        return loss;
    for (int64_t c = 0; c < C; c++) {
        const float sw = p->smooth_factor > 0 ? p->smooth_factor * p->share * weight_of(p, c) : 0;
        for (int lane = 0; lane < LANES; lane++)
            scratch[c * LANES + lane] = a[lane] * scratch[c * LANES + lane] - sw;
    }
    for (int lane = 0; lane < n_lanes; lane++) {
        if (target[lane] != NO_CLASS)
            scratch[target[lane] * LANES + lane] -= b[lane];
        else
            for (int64_t c = 0; c < C; c++)
                scratch[c * LANES + lane] = 0;
    }
    return loss;
}

#endif
