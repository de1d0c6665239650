/* Division of rows into tiles, and of tiles among threads. */

#ifndef TORCH_SOFTMAX_SCHEDULE_H
#define TORCH_SOFTMAX_SCHEDULE_H

#include <omp.h>
#include <stdlib.h>
#include <time.h>

#include "rows.h"

/* one version per instruction set; the loader selects the one that the processor supports */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(__AVX2__)
#define FOR_EACH_PROCESSOR \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* terms summed in float32 before their sum is added in float64 */
#define MAX_TERMS 16
/* fewer rows do not pay for a tile of several rows */
#define MIN_TILED_ROWS 8
#define MAX_TRANSPOSED_CLASSES 128
#define MAX_TILED_CLASSES 65536
#define MAX_TILE_ELEMENTS 32768
#define MAX_WIDTH 256
#define MAX_TRANSPOSED_WIDTH 64
/* elements of a transposed tile that fits the first-level cache */
#define MAX_TRANSPOSED_ELEMENTS 8192
/* steps of a long row whose elements fit the first-level cache */
#define RANGE_STEPS 64
/* elements of a unit, the work of a thread between two requests: about 10 us */
#define UNIT_ELEMENTS 8192
/* with fewer elements, waking another thread costs more than it saves */
#define MIN_PARALLEL_ELEMENTS 32768
/* after a slow parallel call, calls stay on one thread for this multiple of the time that it lost */
#define PAUSE_FACTOR 16

typedef struct {
    int64_t n_steps, width; /* of a tile */
    int64_t tile_rows, unit_rows;
} Schedule;

INLINE int64_t round_up(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

INLINE int64_t clamp(int64_t n, int64_t low, int64_t high)
{
    return n < low ? low : n > high ? high : n;
}

static Schedule schedule_of(const Problem *p)
{
    const int64_t C = p->n_classes;
    const int is_strided =
        p->logits.class_stride != 1 || (p->dlogits.data && p->dlogits.class_stride != 1);
    /* class-strided layout: each class of a row is on a cache line of its own */
    const int is_class_strided = is_strided && p->logits.strides[0] < p->logits.class_stride;
    const int64_t max_classes = is_class_strided ? MAX_TILED_CLASSES : MAX_TRANSPOSED_CLASSES;
    Schedule s;
    if (p->sizes[0] < MIN_TILED_ROWS || C > max_classes) {
        s.width = N_PARTIALS;
        s.n_steps = round_up(C, N_PARTIALS) / N_PARTIALS;
        s.tile_rows = 1;
        s.unit_rows = clamp(UNIT_ELEMENTS / C, 1, p->n_rows);
        return s;
    }
    /* strided classes: read and write as many rows per class as the second-level cache allows */
    const int64_t max_width = is_strided ? clamp(MAX_TILE_ELEMENTS / C, 32, MAX_WIDTH)
                                         : clamp(MAX_TRANSPOSED_ELEMENTS / C, 32, MAX_TRANSPOSED_WIDTH);
    s.width = clamp(round_up(p->sizes[0], N_PARTIALS), N_PARTIALS,
                    max_width / N_PARTIALS * N_PARTIALS);
    s.n_steps = C;
    s.tile_rows = s.width;
    s.unit_rows = s.width * clamp(UNIT_ELEMENTS / (s.width * C), 1, p->sizes[0]);
    return s;
}

INLINE int64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

typedef double Unit(const Problem *, const Schedule *, int64_t first, int64_t n_rows, void *scratch);

/* the next unit of a part, whose first one to take is at *next */
INLINE int64_t take(int64_t *next)
{
    int64_t unit;
#pragma omp atomic capture
    unit = (*next)++;
    return unit;
}

/* Adds up the losses of units. Returns -1 if out of memory.

   Each thread takes units of its own part of the rows, then of the parts of others. Neighbouring
   units of two threads would often fault the same huge page, and both would clear it.

   The end of a parallel region waits for every thread, even for one that got no processor time. If a
   call takes longer than the CPU time of its threads together, the following calls use one thread for
   a while. */
static int run_units(const Problem *p, Unit *const units[2][2], int64_t real_bytes, double *loss)
{
    static _Atomic int64_t pause_end;
    const Schedule s = schedule_of(p);
    Unit *const unit = units[p->operation == BACKWARD][s.tile_rows == 1];
    const int64_t span = s.tile_rows == 1 ? p->n_rows : p->sizes[0];
    const int64_t n_blocks = (span + s.unit_rows - 1) / s.unit_rows;
    const int64_t n_units = p->n_rows / span * n_blocks;
    const int64_t n_staged = clamp(s.n_steps * s.width, RANGE_STEPS * N_PARTIALS, INT64_MAX);
    const int64_t scratch_bytes = round_up((3 * s.n_steps * s.width + n_staged) * real_bytes, 64);
    const int64_t start = nanoseconds(CLOCK_MONOTONIC);
    const int is_paused = p->n_threads > 1 && start < pause_end;
    const int n_threads = is_paused ? 1 : (int)clamp(p->n_threads, 1, n_units);
    double *losses = malloc(sizeof(double) * n_units);
    int64_t *next = malloc(sizeof(int64_t) * n_threads);
    char *scratch = aligned_alloc(64, scratch_bytes * n_threads);
    if (!losses || !next || !scratch) {
        free(losses);
        free(next);
        free(scratch);
        return -1;
    }
    int64_t busy = 0;
    for (int part = 0; part < n_threads; part++)
        next[part] = n_units * part / n_threads;
#pragma omp parallel num_threads(n_threads) if (n_threads > 1) reduction(+ : busy)
    {
        const int thread = omp_get_thread_num();
        char *mine = scratch + scratch_bytes * thread;
        busy = n_threads > 1 ? -nanoseconds(CLOCK_THREAD_CPUTIME_ID) : 0;
        for (int k = 0; k < n_threads; k++) {
            const int part = (thread + k) % n_threads;
            const int64_t end = n_units * (part + 1) / n_threads;
            for (int64_t i = take(next + part); i < end; i = take(next + part)) {
                const int64_t begin = i % n_blocks * s.unit_rows, left = span - begin;
                losses[i] = unit(p, &s, i / n_blocks * span + begin,
                                 left < s.unit_rows ? left : s.unit_rows, mine);
            }
        }
        busy += n_threads > 1 ? nanoseconds(CLOCK_THREAD_CPUTIME_ID) : 0;
    }
    if (n_threads > 1) {
        const int64_t end = nanoseconds(CLOCK_MONOTONIC);
        const int64_t lost = end - start - busy;
        if (lost > 0)
            pause_end = end + PAUSE_FACTOR * lost;
    }
    for (int64_t i = 0; i < n_units; i++)
        *loss += losses[i];
    free(losses);
    free(next);
    free(scratch);
    return 0;
}

#endif
