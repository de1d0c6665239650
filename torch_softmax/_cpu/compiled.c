/* Cross-entropy of rows of logits and its gradient, in one pass over them: the module. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <omp.h>
#include <stdlib.h>

#include "one_row.h"
#include "tiles.h"

/* one source for every processor: the loader takes the version that this one knows */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_PROCESSOR \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* fewer rows are not worth a tile */
#define MIN_TILED_ROWS 8
#define MAX_TILED_CLASSES 64
/* where rows lie closer than the classes of one, which one by one would be a cache line each; a class
   takes 256 bytes of scratch */
#define MAX_STRIDED_CLASSES 65536
/* such rows are read and written in longer runs, as many tiles at once as the cache holds */
#define TILED_CLASSES 512
/* below, waking another thread costs more than it takes over */
#define MIN_PARALLEL_ELEMENTS 32768

static int is_strided(const Problem *p)
{
    return p->logits.class_stride != 1 || (p->dlogits.data && p->dlogits.class_stride != 1);
}

FOR_EACH_PROCESSOR
static double one_row_of(const Problem *p, int64_t row, float *scratch)
{
    if (is_strided(p))
        return one_row(p, row, scratch, p->is_bfloat16, 1);
    return p->is_bfloat16 ? one_row(p, row, scratch, 1, 0) : one_row(p, row, scratch, 0, 0);
}

FOR_EACH_PROCESSOR
static double tiles_of(const Problem *p, int64_t first, int n_rows, float *scratch)
{
    const int64_t C = p->n_classes;
    /* idle lanes are computed too */
    if (n_rows % LANES)
        memset(scratch + n_rows / LANES * LANES * C, 0, sizeof(float) * LANES * C);
    if (p->is_bfloat16)
        load_tiles(p, first, n_rows, scratch, 1);
    else
        load_tiles(p, first, n_rows, scratch, 0);
    double loss = 0;
    for (int begin = 0; begin < n_rows; begin += LANES)
        loss += one_tile(p, first + begin, n_rows - begin < LANES ? n_rows - begin : LANES,
                         scratch + begin * C);
    if (!p->dlogits.data)
        return loss;
    if (p->is_bfloat16)
        store_tiles(p, first, n_rows, scratch, 1);
    else
        store_tiles(p, first, n_rows, scratch, 0);
    return loss;
}

/* rows that one thread takes at once: 1 by itself, or LANES times a number of tiles */
static int64_t rows_at_once(const Problem *p)
{
    const int rows_are_closer = is_strided(p) && p->logits.row_stride < p->logits.class_stride;
    const int64_t most = rows_are_closer ? MAX_STRIDED_CLASSES : MAX_TILED_CLASSES;
    if (p->n_inner < MIN_TILED_ROWS || p->n_classes > most)
        return 1;
    const int64_t tiles = is_strided(p) ? TILED_CLASSES / p->n_classes : 1;
    return LANES * (tiles < 1 ? 1 : tiles < MAX_TILES ? tiles : MAX_TILES);
}

/* adds up the loss of all rows; -1 where memory is short */
static int all_rows(const Problem *p, double *loss)
{
    const int64_t at_once = rows_at_once(p);
    /* they do not reach over the end of inner rows */
    const int64_t n_parts = (p->n_inner + at_once - 1) / at_once;
    const int64_t n_units = p->n_rows / p->n_inner * n_parts;
    /* in whole cache lines, which are vectors too */
    const int64_t scratch_size = (p->n_classes * at_once + VECTOR - 1) / VECTOR * VECTOR;
    const int n_threads = n_units < p->n_threads ? (int)n_units : p->n_threads;
    double *losses = malloc(sizeof(double) * n_units);
    float *scratch = aligned_alloc(64, sizeof(float) * scratch_size * n_threads);
    if (!losses || !scratch) {
        free(losses);
        free(scratch);
        return -1;
    }
#pragma omp parallel for schedule(static) num_threads(n_threads) if (n_threads > 1)
    for (int64_t unit = 0; unit < n_units; unit++) {
        float *mine = scratch + scratch_size * omp_get_thread_num();
        const int64_t inner = unit % n_parts * at_once, left = p->n_inner - inner;
        const int64_t first = unit / n_parts * p->n_inner + inner;
        losses[unit] = at_once == 1 ? one_row_of(p, first, mine)
                                    : tiles_of(p, first, (int)(left < at_once ? left : at_once), mine);
    }
    for (int64_t unit = 0; unit < n_units; unit++)
        *loss += losses[unit];
    free(losses);
    free(scratch);
    return 0;
}

/* what a mean divides by; -1 where the target of row *bad is no class */
static double denominator(const Problem *p, int64_t *bad)
{
    double total = 0;
    for (int64_t row = 0; row < p->n_rows; row++) {
        const int64_t target = p->target[row];
        if (target == p->ignore_index)
            continue;
        if (target < 0 || target >= p->n_classes) {
            *bad = row;
            return -1;
        }
        total += weight_of(p, target);
    }
    return total;
}

static float sum_of_weights(const Problem *p)
{
    if (!p->class_weight)
        return (float)p->n_classes;
    double total = 0;
    for (int64_t c = 0; c < p->n_classes; c++)
        total += p->class_weight[c];
    return (float)total;
}

/* names of a tensor's methods, made once */
static PyObject *data_ptr, *element_size, *shape, *stride;

/* what such a method gives, which takes no arguments */
static int integer_of(PyObject *tensor, PyObject *method, int64_t *value)
{
    PyObject *result = PyObject_CallMethodObjArgs(tensor, method, NULL);
    if (!result)
        return -1;
    *value = PyLong_AsLongLong(result);
    Py_DECREF(result);
    return PyErr_Occurred() ? -1 : 0;
}

/* of a tensor of one to three axes, whose last is the classes: counts of outer, inner and class */
static int rows_of(PyObject *tensor, Rows *rows, int64_t counts[3])
{
    int64_t strides[3] = {0, 0, 0}, data;
    if (integer_of(tensor, data_ptr, &data))
        return -1;
    PyObject *sizes = PyObject_GetAttr(tensor, shape);
    PyObject *steps = sizes ? PyObject_CallMethodObjArgs(tensor, stride, NULL) : NULL;
    const Py_ssize_t n_axes = steps ? PyTuple_Size(sizes) : 0;
    if (steps && (n_axes < 1 || n_axes > 3))
        PyErr_Format(PyExc_ValueError, "cross_entropy needs one to three axes, got %zd", n_axes);
    counts[0] = counts[1] = 1;
    for (Py_ssize_t axis = 0; axis < n_axes && !PyErr_Occurred(); axis++) {
        counts[3 - n_axes + axis] = PyLong_AsLongLong(PyTuple_GetItem(sizes, axis));
        strides[3 - n_axes + axis] = PyLong_AsLongLong(PyTuple_GetItem(steps, axis));
    }
    Py_XDECREF(sizes);
    Py_XDECREF(steps);
    *rows = (Rows){(void *)data, strides[0], strides[1], strides[2]};
    return PyErr_Occurred() ? -1 : 0;
}

/* logits and dlogits */
static int read_rows(PyObject *const *args, Problem *p)
{
    int64_t counts[3], gradient_counts[3];
    if (rows_of(args[0], &p->logits, counts))
        return -1;
    p->n_rows = counts[0] * counts[1];
    p->n_inner = counts[1];
    p->n_classes = counts[2];
    if (p->n_rows * p->n_classes == 0) {
        PyErr_SetString(PyExc_ValueError, "cross_entropy needs logits, got an empty tensor");
        return -1;
    }
    if (args[1] == Py_None)
        return 0;
    if (rows_of(args[1], &p->dlogits, gradient_counts))
        return -1;
    if (memcmp(counts, gradient_counts, sizeof counts)) {
        PyErr_SetString(PyExc_ValueError, "cross_entropy needs dlogits in the shape of logits");
        return -1;
    }
    return 0;
}

/* the others */
static int read_options(PyObject *const *args, Problem *p)
{
    int64_t size, data;
    if (integer_of(args[0], element_size, &size))
        return -1;
    if (integer_of(args[2], data_ptr, &data))
        return -1;
    p->target = (const int64_t *)data;
    if (args[3] != Py_None) {
        if (integer_of(args[3], data_ptr, &data))
            return -1;
        p->class_weight = (const float *)data;
    }
    p->is_bfloat16 = size == 2;
    p->ignore_index = PyLong_AsLongLong(args[4]);
    p->is_mean = PyObject_IsTrue(args[5]);
    const double label_smoothing = PyFloat_AsDouble(args[6]);
    p->nll_factor = (float)(1 - label_smoothing);
    p->smooth_factor = (float)(label_smoothing / (double)p->n_classes);
    p->z_loss = (float)PyFloat_AsDouble(args[7]);
    const int64_t n_threads = PyLong_AsLongLong(args[8]);
    p->n_threads = p->n_rows * p->n_classes < MIN_PARALLEL_ELEMENTS ? 1 : (int)n_threads;
    return PyErr_Occurred() ? -1 : 0;
}

/* see compiled.pyi */
static PyObject *cross_entropy(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 9)
        return PyErr_Format(PyExc_TypeError, "cross_entropy needs 9 arguments, got %zd", n_args);
    Problem p = {0};
    if (read_rows(args, &p) || read_options(args, &p))
        return NULL;
    double loss = 0, divisor;
    int64_t bad = -1;
    int status = 0;
    Py_BEGIN_ALLOW_THREADS
    divisor = denominator(&p, &bad);
    if (bad < 0) {
        p.total_weight = sum_of_weights(&p);
        p.share = p.is_mean ? (float)(1 / divisor) : 1;
        status = all_rows(&p, &loss);
    }
    Py_END_ALLOW_THREADS
    if (status < 0)
        return PyErr_NoMemory();
    if (bad >= 0)
        return PyLong_FromLongLong(p.target[bad]);
    return PyFloat_FromDouble(p.is_mean ? loss / divisor : loss);
}

/* which schedule such rows take */
static PyObject *rows_at_once_of(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 2)
        return PyErr_Format(PyExc_TypeError, "rows_at_once needs 2 arguments, got %zd", n_args);
    Problem p = {0};
    return read_rows(args, &p) ? NULL : PyLong_FromLongLong(rows_at_once(&p));
}

static PyMethodDef methods[] = {
    {"cross_entropy", (PyCFunction)(void (*)(void))cross_entropy, METH_FASTCALL, NULL},
    {"rows_at_once", (PyCFunction)(void (*)(void))rows_at_once_of, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "compiled",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit_compiled(void)
{
    data_ptr = PyUnicode_InternFromString("data_ptr");
    element_size = PyUnicode_InternFromString("element_size");
    shape = PyUnicode_InternFromString("shape");
    stride = PyUnicode_InternFromString("stride");
    return data_ptr && element_size && shape && stride ? PyModule_Create(&module) : NULL;
}
