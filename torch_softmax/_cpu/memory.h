/* Loads and stores of a tile's rows, converted to and from REAL. Included once for each REAL. */

INLINE REAL NAME(load)(const char *data, Type type, int64_t i)
{
    uint32_t bits;
    switch (type) {
    case FLOAT32: return (REAL)((const float *)data)[i];
    case FLOAT64: return (REAL)((const double *)data)[i];
    case BFLOAT16: bits = ((const uint16_t *)data)[i]; return (REAL)float_of_bits(bits << 16);
    default: return (REAL)float_of_half(((const uint16_t *)data)[i]);
    }
}

INLINE void NAME(store)(char *data, Type type, int64_t i, REAL x)
{
    switch (type) {
    case FLOAT32: ((float *)data)[i] = (float)x; break;
    case FLOAT64: ((double *)data)[i] = (double)x; break;
    case BFLOAT16: ((uint16_t *)data)[i] = bfloat16_of_float((float)x); break;
    default: ((uint16_t *)data)[i] = half_of_float((float)x);
    }
}

/* loads n elements, `stride` elements apart, into x */
INLINE void NAME(load_all)(const char *data, Type type, int64_t stride, int64_t n, REAL *x)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        x[i] = NAME(load)(data, type, i * stride);
}

INLINE void NAME(store_all)(char *data, Type type, int64_t stride, int64_t n, const REAL *x)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        NAME(store)(data, type, i * stride, x[i]);
}

/* specialized for each element type if the elements are contiguous */
#define SPECIALIZED(CALL, data, type, stride, n, x)                      \
    if (stride != 1)                                                         \
        CALL(data, type, stride, n, x);                                      \
    else if (type == FLOAT32)                                                \
        CALL(data, FLOAT32, 1, n, x);                                        \
    else if (type == FLOAT64)                                                \
        CALL(data, FLOAT64, 1, n, x);                                        \
    else if (type == BFLOAT16)                                               \
        CALL(data, BFLOAT16, 1, n, x);                                       \
    else                                                                     \
        CALL(data, FLOAT16, 1, n, x)

INLINE void NAME(load_elements)(const char *data, Type type, int64_t stride, int64_t n, REAL *x)
{
    SPECIALIZED(NAME(load_all), data, type, stride, n, x);
}

INLINE void NAME(store_elements)(char *data, Type type, int64_t stride, int64_t n, const REAL *x)
{
    SPECIALIZED(NAME(store_all), data, type, stride, n, x);
}

/* Indices serve compilers without __builtin_shufflevector */
typedef INDEX NAME(Indices) __attribute__((vector_size(4 * sizeof(REAL)), unused));
typedef REAL NAME(Four) __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* out[j][i] = in[i][j] for n x m elements, in blocks of 4 x 4; the last blocks overlap */
INLINE void NAME(transpose)(const REAL *in, int64_t in_stride, int64_t n, int64_t m, REAL *out,
                            int64_t out_stride)
{
    if (n < 4 || m < 4) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < m; j++)
                out[j * out_stride + i] = in[i * in_stride + j];
        return;
    }
    for (int64_t i = 0; i < n; i = i + 4 < n && i + 8 > n ? n - 4 : i + 4)
        for (int64_t j = 0; j < m; j = j + 4 < m && j + 8 > m ? m - 4 : j + 4) {
            const REAL *from = in + i * in_stride + j;
            REAL *to = out + j * out_stride + i;
            NAME(Four) v[4], u[4];
            for (int k = 0; k < 4; k++)
                v[k] = *(const NAME(Four) *)(from + k * in_stride);
            u[0] = SHUFFLE(v[0], v[1], 0, 4, 1, 5);
            u[1] = SHUFFLE(v[0], v[1], 2, 6, 3, 7);
            u[2] = SHUFFLE(v[2], v[3], 0, 4, 1, 5);
            u[3] = SHUFFLE(v[2], v[3], 2, 6, 3, 7);
            *(NAME(Four) *)to = SHUFFLE(u[0], u[2], 0, 1, 4, 5);
            *(NAME(Four) *)(to + out_stride) = SHUFFLE(u[0], u[2], 2, 3, 6, 7);
            *(NAME(Four) *)(to + 2 * out_stride) = SHUFFLE(u[1], u[3], 0, 1, 4, 5);
            *(NAME(Four) *)(to + 3 * out_stride) = SHUFFLE(u[1], u[3], 2, 3, 6, 7);
        }
}

/* Whether rows are loaded and stored through a transposition. */
INLINE int NAME(is_transposed)(const Problem *p, const Rows *rows)
{
    return rows->class_stride == 1 && p->n_classes <= MAX_TRANSPOSED_CLASSES;
}

/* elements side by side in memory: all rows of a tile if no gap is between them, else one row */
INLINE int64_t NAME(run)(const Problem *p, const NAME(Tile) *t, const Rows *rows)
{
    return rows->strides[0] == p->n_classes ? t->n_rows * p->n_classes : p->n_classes;
}

/* loads rows from `first` on, or the range of one row, into x[step][width], padded with `beyond` */
INLINE void NAME(load_rows)(const Problem *p, const NAME(Tile) *t, const Rows *rows, int64_t first,
                            REAL *x, REAL beyond, int is_row)
{
    const int64_t C = p->n_classes, width = t->width, bytes = TYPE_BYTES[rows->type];
    const int64_t row_bytes = rows->strides[0] * bytes, class_bytes = rows->class_stride * bytes;
    const char *data = rows->data + offset_of(p, rows, first) * bytes;
    if (is_row) {
        const int64_t begin = t->begin * width, end = t->end * width, n = (end < C ? end : C) - begin;
        NAME(load_elements)(data + begin * class_bytes, rows->type, rows->class_stride, n, x + begin);
        for (int64_t i = C; i < end; i++)
            x[i] = beyond;
        return;
    }
    if (t->n_rows < width)
        for (int64_t i = 0; i < C * width; i++)
            x[i] = beyond;
    if (!NAME(is_transposed)(p, rows)) {
        for (int64_t c = 0; c < C; c++) {
            const char *column = data + c * class_bytes;
            /* hardware prefetches only a few streams, not one per class */
            for (int64_t i = 0; i < width; i += 64 / bytes)
                __builtin_prefetch(column + (width + i) * row_bytes);
            NAME(load_elements)(column, rows->type, rows->strides[0], t->n_rows, x + c * width);
        }
        return;
    }
    if (rows->type == REAL_TYPE) {
        NAME(transpose)((const REAL *)data, rows->strides[0], t->n_rows, C, x, width);
        return;
    }
    const int64_t run = NAME(run)(p, t, rows);
    for (int64_t i = 0; i < t->n_rows * C; i += run)
        NAME(load_elements)(data + i / C * row_bytes, rows->type, 1, run, t->staging + i);
    NAME(transpose)(t->staging, C, t->n_rows, C, x, width);
}

/* stores what load_rows loads; x begins at the range */
INLINE void NAME(store_rows)(const Problem *p, const NAME(Tile) *t, const Rows *rows, int64_t first,
                             const REAL *x, int is_row)
{
    const int64_t C = p->n_classes, width = t->width, bytes = TYPE_BYTES[rows->type];
    const int64_t row_bytes = rows->strides[0] * bytes, class_bytes = rows->class_stride * bytes;
    char *data = rows->data + offset_of(p, rows, first) * bytes;
    if (is_row) {
        const int64_t begin = t->begin * width, end = t->end * width, n = (end < C ? end : C) - begin;
        NAME(store_elements)(data + begin * class_bytes, rows->type, rows->class_stride, n, x);
        return;
    }
    if (!NAME(is_transposed)(p, rows)) {
        for (int64_t c = 0; c < C; c++)
            NAME(store_elements)(data + c * class_bytes, rows->type, rows->strides[0], t->n_rows,
                            x + c * width);
        return;
    }
    if (rows->type == REAL_TYPE) {
        NAME(transpose)(x, width, C, t->n_rows, (REAL *)data, rows->strides[0]);
        return;
    }
    NAME(transpose)(x, width, C, t->n_rows, t->staging, C);
    const int64_t run = NAME(run)(p, t, rows);
    for (int64_t i = 0; i < t->n_rows * C; i += run)
        NAME(store_elements)(data + i / C * row_bytes, rows->type, 1, run, t->staging + i);
}
