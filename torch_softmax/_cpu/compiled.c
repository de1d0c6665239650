/* Python module: cross-entropy of rows of logits and its gradient, in one pass over the rows. */

/* one module for every Python from 3.11 on */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

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

#include "arguments.h"

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

/* Computes with the GIL released. Returns the loss, None for other operations, or an int: a target
   that is not a class. */
static PyObject *run(Problem *p)
{
    double loss = 0;
    int64_t bad = -1, bad_target = 0;
    int status = 0;
    Py_BEGIN_ALLOW_THREADS
    if (p->operation != BACKWARD) {
        const double denominator = denominator_of(p, &bad);
        if (!p->has_denominator)
            p->denominator = p->is_mean ? denominator : 1;
        bad_target = bad < 0 ? 0 : p->target[bad];
    }
    p->gradient_scale = p->dloss / p->denominator;
    if (bad < 0)
        status = p->logits.type == FLOAT64 ? run_units(p, units_double, sizeof(double), &loss)
                                           : run_units(p, units_float, sizeof(float), &loss);
    Py_END_ALLOW_THREADS
    if (status < 0)
        return PyErr_NoMemory();
    if (bad >= 0)
        return PyLong_FromLongLong(bad_target);
    return p->operation == LOSS ? PyFloat_FromDouble(loss / p->denominator) : Py_NewRef(Py_None);
}

static PyObject *run_if(int is_read, Problem *p)
{
    PyObject *result = is_read ? run(p) : NULL;
    free(p->class_weight);
    return result;
}

/* compiled.pyi documents this and the other functions */
static PyObject *cross_entropy_loss(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 13)
        return PyErr_Format(PyExc_TypeError, "cross_entropy needs 13 arguments, got %zd", n_args);
    Problem p = {.operation = LOSS, .has_ignore_index = 1, .dloss = 1};
    double label_smoothing = 0;
    p.has_denominator = args[4] != Py_None;
    int is_read = !read_problem(args[0], args[1], args[2], &p) &&
                  !read_number(args[4], &p.denominator) && !read_number(args[5], &p.dloss) &&
                  !read_number(args[8], &label_smoothing) && !read_number(args[9], &p.z_loss) &&
                  !read_number(args[10], &p.softcap) && !read_number(args[11], &p.logit_scale) &&
                  !read_threads(args[12], &p) &&
                  ((args[3] == Py_None && label_smoothing == 0) || !read_weight(args[3], &p));
    if (is_read) {
        p.ignore_index = PyLong_AsLongLong(args[6]);
        p.is_mean = PyObject_RichCompareBool(args[7], mean, Py_EQ);
        p.nll_factor = 1 - label_smoothing;
        p.smooth_factor = label_smoothing / (double)p.n_classes;
        is_read = !PyErr_Occurred();
    }
    return run_if(is_read, &p);
}

static PyObject *cross_entropy_forward(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 13)
        return PyErr_Format(PyExc_TypeError, "cross_entropy needs 13 arguments, got %zd", n_args);
    Problem p = {.operation = FORWARD};
    RowTensors *rows = &p.rows;
    const int is_read =
        !read_problem(args[0], Py_None, args[1], &p) && !read_number(args[3], &p.logit_scale) &&
        !read_number(args[4], &p.softcap) && !read_threads(args[12], &p) &&
        !read_data(args[5], &rows->nll) && !read_data(args[6], &rows->smooth) &&
        !read_data(args[7], &rows->target_weight) && !read_data(args[8], &rows->lse) &&
        !read_data(args[9], &rows->entropy) &&
        !read_data(args[10], (void **)&rows->prediction) &&
        !read_data(args[11], &rows->softmax_stats) &&
        (args[2] == Py_None || !read_weight(args[2], &p));
    return run_if(is_read, &p);
}

static PyObject *cross_entropy_backward(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 12)
        return PyErr_Format(PyExc_TypeError, "cross_entropy needs 12 arguments, got %zd", n_args);
    Problem p = {.operation = BACKWARD};
    RowTensors *rows = &p.rows;
    const int is_read =
        !read_problem(args[0], args[1], args[2], &p) &&
        !read_data(args[4], &rows->softmax_stats) && !read_data(args[5], &rows->a) &&
        !read_data(args[6], &rows->b) && !read_data(args[7], &rows->s) &&
        !read_data(args[8], &rows->e) && !read_number(args[9], &p.logit_scale) &&
        !read_number(args[10], &p.softcap) && !read_threads(args[11], &p) &&
        (args[3] == Py_None || !read_weight(args[3], &p));
    return run_if(is_read, &p);
}

static PyObject *tile_shape(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 2)
        return PyErr_Format(PyExc_TypeError, "tile_shape needs 2 arguments, got %zd", n_args);
    Problem p = {0};
    int64_t sizes[3];
    if (read_rows(args[0], &p.logits, sizes))
        return NULL;
    p.n_rows = sizes[0] * sizes[1];
    p.n_inner = sizes[1];
    p.n_classes = sizes[2];
    if (read_like(args[1], &p, &p.dlogits))
        return NULL;
    const Schedule s = schedule_of(&p);
    PyObject *rows = PyLong_FromLongLong(s.tile_rows);
    PyObject *classes = PyLong_FromLongLong(s.tile_rows == 1 ? s.n_steps * s.width : s.n_steps);
    PyObject *shape_of_tile = rows && classes ? PyTuple_Pack(2, rows, classes) : NULL;
    Py_XDECREF(rows);
    Py_XDECREF(classes);
    return shape_of_tile;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    METHOD(cross_entropy_loss),
    METHOD(cross_entropy_forward),
    METHOD(cross_entropy_backward),
    METHOD(tile_shape),
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "compiled",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit_compiled(void)
{
    PyObject *torch = PyImport_ImportModule("torch");
    for (int i = 0; torch && i < N_TYPES; i++)
        if (!(dtypes[i] = PyObject_GetAttrString(torch, DTYPE_NAMES[i])))
            return NULL;
    Py_XDECREF(torch);
    data_ptr = PyUnicode_InternFromString("data_ptr");
    dtype = PyUnicode_InternFromString("dtype");
    shape = PyUnicode_InternFromString("shape");
    stride = PyUnicode_InternFromString("stride");
    mean = PyUnicode_InternFromString("mean");
    return torch && data_ptr && dtype && shape && stride && mean ? PyModule_Create(&module) : NULL;
}
