/* Cross-entropy of rows of logits and its gradient, in one pass over them: the module. */

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
#define REAL_TYPE FLOAT32
#define NAME(stem) stem##_float
#include "tile.h"
#undef REAL
#undef REAL_TYPE
#undef NAME
#define REAL double
#define REAL_TYPE FLOAT64
#define NAME(stem) stem##_double
#include "tile.h"

/* what the functions read of tensors, made once */
static PyObject *data_ptr, *dtype, *shape, *stride, *dtypes[N_TYPES];
static const char *const DTYPE_NAMES[N_TYPES] = {"float32", "float64", "bfloat16", "float16", "int64"};

static int read_data(PyObject *tensor, void **data)
{
    *data = NULL;
    if (tensor == Py_None)
        return 0;
    PyObject *result = PyObject_CallMethodObjArgs(tensor, data_ptr, NULL);
    *data = result ? (void *)PyLong_AsSize_t(result) : NULL;
    Py_XDECREF(result);
    return PyErr_Occurred() ? -1 : 0;
}

static int read_type(PyObject *tensor, Type *type)
{
    PyObject *found = PyObject_GetAttr(tensor, dtype);
    int i = 0;
    while (found && i < N_TYPES && found != dtypes[i])
        i++;
    Py_XDECREF(found);
    *type = (Type)i;
    if (found && i == N_TYPES)
        PyErr_SetString(PyExc_TypeError, "cross_entropy needs float16 to float64, or int64 classes");
    return PyErr_Occurred() ? -1 : 0;
}

/* a tensor of one to three axes, the classes last: sizes outer, inner and classes */
static int read_rows(PyObject *tensor, Rows *rows, int64_t sizes[3])
{
    int64_t strides[3] = {0, 0, 0};
    if (read_data(tensor, (void **)&rows->data) || read_type(tensor, &rows->type))
        return -1;
    PyObject *size = PyObject_GetAttr(tensor, shape);
    PyObject *steps = size ? PyObject_CallMethodObjArgs(tensor, stride, NULL) : NULL;
    const Py_ssize_t n_axes = steps ? PyTuple_Size(size) : 0;
    if (steps && (n_axes < 1 || n_axes > 3))
        PyErr_Format(PyExc_ValueError, "cross_entropy needs one to three axes, got %zd", n_axes);
    sizes[0] = sizes[1] = sizes[2] = 1;
    for (Py_ssize_t axis = 0; axis < n_axes && !PyErr_Occurred(); axis++) {
        sizes[3 - n_axes + axis] = PyLong_AsLongLong(PyTuple_GetItem(size, axis));
        strides[3 - n_axes + axis] = PyLong_AsLongLong(PyTuple_GetItem(steps, axis));
    }
    Py_XDECREF(size);
    Py_XDECREF(steps);
    rows->outer_stride = strides[0];
    rows->row_stride = strides[1];
    rows->class_stride = strides[2];
    return PyErr_Occurred() ? -1 : 0;
}

/* another tensor of the shape of logits */
static int read_like(PyObject *tensor, const Problem *p, Rows *rows)
{
    int64_t sizes[3];
    if (tensor == Py_None)
        return 0;
    if (read_rows(tensor, rows, sizes))
        return -1;
    if (sizes[0] * sizes[1] == p->n_rows && sizes[1] == p->n_inner && sizes[2] == p->n_classes)
        return 0;
    PyErr_SetString(PyExc_ValueError, "cross_entropy needs tensors in the shape of logits");
    return -1;
}

/* logits, dlogits and target: what every function has */
static int read_problem(PyObject *logits, PyObject *dlogits, PyObject *target, Problem *p)
{
    int64_t sizes[3];
    Type target_type;
    if (read_rows(logits, &p->logits, sizes) || read_type(target, &target_type))
        return -1;
    p->n_rows = sizes[0] * sizes[1];
    p->n_inner = sizes[1];
    p->n_classes = sizes[2];
    if (p->n_rows * p->n_classes == 0 || p->logits.type == INT64) {
        PyErr_SetString(PyExc_ValueError, "cross_entropy needs floating logits, and at least one");
        return -1;
    }
    if (read_like(dlogits, p, &p->dlogits))
        return -1;
    return target_type == INT64 ? read_data(target, (void **)&p->target)
                                : read_like(target, p, &p->probabilities);
}

/* Copies class weights, or ones for None, in the type of the arithmetic, with zeros after them that
   fill the last step of a row. */
static int read_weight(PyObject *tensor, Problem *p)
{
    Rows weight = {0};
    int64_t sizes[3];
    if (tensor != Py_None && read_rows(tensor, &weight, sizes))
        return -1;
    const int64_t n = p->n_classes + MAX_ROW_WIDTH;
    const int is_double = p->logits.type == FLOAT64;
    if (weight.data && sizes[2] != p->n_classes) {
        PyErr_SetString(PyExc_ValueError, "cross_entropy needs a weight of each class");
        return -1;
    }
    p->class_weight = calloc(n, sizeof(double));
    if (!p->class_weight) {
        PyErr_NoMemory();
        return -1;
    }
    for (int64_t c = 0; c < p->n_classes; c++) {
        const double w =
            weight.data ? load_double(weight.data, weight.type, c * weight.class_stride) : 1;
        if (is_double)
            ((double *)p->class_weight)[c] = w;
        else
            ((float *)p->class_weight)[c] = (float)w;
        p->weight_sum += is_double ? w : (float)w;
    }
    return 0;
}

/* a number, or what value is where there is None */
static int read_number(PyObject *number, double *value)
{
    if (number != Py_None)
        *value = PyFloat_AsDouble(number);
    return PyErr_Occurred() ? -1 : 0;
}

static int read_threads(PyObject *number, Problem *p)
{
    const int64_t n = PyLong_AsLongLong(number);
    p->n_threads = p->n_rows * p->n_classes < MIN_PARALLEL_ELEMENTS ? 1 : (int)n;
    return PyErr_Occurred() ? -1 : 0;
}

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

/* what a mean divides by; sets *bad to a row whose target is no class */
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

/* Computes without Python's lock. Returns the loss, None for other operations, or as an int the
   target that is no class. */
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
    p->inverse_denominator = 1 / p->denominator;
    if (bad < 0)
        status = p->logits.type == FLOAT64 ? run_units(p, unit_double, sizeof(double), &loss)
                                           : run_units(p, unit_float, sizeof(float), &loss);
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

/* see compiled.pyi for this and the other functions */
static PyObject *cross_entropy_loss(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 12)
        return PyErr_Format(PyExc_TypeError, "cross_entropy needs 12 arguments, got %zd", n_args);
    Problem p = {.operation = LOSS, .has_ignore_index = 1};
    double label_smoothing = 0;
    p.has_denominator = args[4] != Py_None;
    int is_read = !read_problem(args[0], args[1], args[2], &p) &&
                  !read_number(args[4], &p.denominator) && !read_number(args[7], &label_smoothing) &&
                  !read_number(args[8], &p.z_loss) && !read_number(args[9], &p.softcap) &&
                  !read_number(args[10], &p.logit_scale) && !read_threads(args[11], &p) &&
                  ((args[3] == Py_None && label_smoothing == 0) || !read_weight(args[3], &p));
    if (is_read) {
        p.ignore_index = PyLong_AsLongLong(args[5]);
        p.is_mean = PyObject_IsTrue(args[6]);
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
    return torch && data_ptr && dtype && shape && stride ? PyModule_Create(&module) : NULL;
}
