/* Conversion of Python arguments to a Problem. */

#ifndef TORCH_SOFTMAX_ARGUMENTS_H
#define TORCH_SOFTMAX_ARGUMENTS_H

/* attribute names, dtypes and a reduction, created once at import */
static PyObject *data_ptr, *dtype, *shape, *stride, *mean, *dtypes[N_TYPES];
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

/* a tensor of one to three axes, the class axis last: sizes outer, inner and classes */
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

/* another tensor in the shape of logits */
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

/* logits, dlogits and target, which every function takes */
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

/* Copies class weights, or ones for None, in the type of the arithmetic, padded with zeros to the
   last step of a row. */
static int read_weight(PyObject *tensor, Problem *p)
{
    Rows weight = {0};
    int64_t sizes[3];
    if (tensor != Py_None && read_rows(tensor, &weight, sizes))
        return -1;
    const int64_t n = p->n_classes + N_PARTIALS;
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

/* a number; None leaves *value as it is */
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

#endif
