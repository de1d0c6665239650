/* What the operators share: types, results, and the Problem that tensors make. */

#ifndef TORCH_SOFTMAX_INPUTS_H
#define TORCH_SOFTMAX_INPUTS_H

#include <sys/mman.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "torch.h"

extern "C" {
#include "rows.h"
}

static int32_t dtypes[N_TYPES];

static void require(bool condition, const char *requirement)
{
    if (!condition)
        throw std::invalid_argument(std::string("cross_entropy needs ") + requirement);
}

/* INT64 for a dtype that is no floating-point type */
static Type number_type(const Tensor &x)
{
    int32_t *end = dtypes + INT64;
    return (Type)(std::find(dtypes, end, x.dtype()) - dtypes);
}

static Type type_of(const Tensor &x)
{
    const Type type = number_type(x);
    require(type != INT64, "floating-point tensors, float16 to float64");
    return type;
}

static void refuse_derivatives(const char *name, std::initializer_list<const Tensor *> tensors)
{
    if (!aoti_torch_grad_mode_is_enabled())
        return;
    for (const Tensor *x : tensors)
        if (*x && requires_grad(*x))
            throw std::runtime_error(std::string("torch_softmax::") + name +
                                     " has no derivative of its own: call the functions of "
                                     "torch_softmax, and take second derivatives outside "
                                     "torch.compile");
}

/* The gradient's memory. The first write to a page allocates it: 63 ms for 128 MiB of ordinary pages,
   14 ms for huge pages (AMD EPYC, Linux 6, one core). */
static Tensor empty_gradient_like(const Tensor &logits)
{
    Tensor dlogits = empty_like(logits);
#ifdef MADV_HUGEPAGE
    const size_t huge_page = 2 << 20, bytes = dlogits.numel() * TYPE_BYTES[type_of(logits)];
    /* smaller tensors reuse memory: glibc maps new pages for 16 MiB or more */
    if (bytes >= 8 * huge_page) {
        const size_t data = (size_t)dlogits.mutable_data();
        const size_t begin = (data + huge_page - 1) / huge_page * huge_page;
        madvise((void *)begin, (data + bytes) / huge_page * huge_page - begin, MADV_HUGEPAGE);
    }
#endif
    return dlogits;
}

static Tensor empty(const std::vector<int64_t> &sizes, int32_t dtype)
{
    std::vector<int64_t> strides(sizes.size());
    int64_t stride = 1;
    for (size_t axis = sizes.size(); axis-- > 0; stride *= std::max<int64_t>(sizes[axis], 1))
        strides[axis] = stride;
    return empty_strided((int64_t)sizes.size(), sizes.data(), strides.data(), dtype);
}

/* The rows of tensors of one shape, whose batch axes are merged where all of them allow it. */
static void set_rows(Problem *p, int64_t dim, const int64_t *sizes,
                     std::initializer_list<std::pair<Rows *, const int64_t *>> tensors)
{
    p->n_classes = sizes[dim - 1];
    p->n_rows = p->n_axes = 1;
    if (std::count(sizes, sizes + dim - 1, 0)) {
        p->n_rows = 0;
        return;
    }
    p->sizes[0] = 1;
    for (const auto &tensor : tensors) {
        tensor.first->class_stride = tensor.second[dim - 1];
        tensor.first->strides[0] = 0;
    }
    for (int64_t axis = dim - 2; axis >= 0; axis--) {
        if (sizes[axis] == 1)
            continue;
        const int last = p->n_axes - 1;
        bool is_first = p->n_rows == 1, is_merged = !is_first;
        for (const auto &tensor : tensors)
            is_merged &= tensor.second[axis] == tensor.first->strides[last] * p->sizes[last];
        p->n_rows *= sizes[axis];
        if (is_merged) {
            p->sizes[last] *= sizes[axis];
            continue;
        }
        const int next = is_first ? 0 : p->n_axes++;
        p->sizes[next] = sizes[axis];
        for (const auto &tensor : tensors)
            tensor.first->strides[next] = tensor.second[axis];
    }
}

static std::pair<Rows *, const int64_t *> with_strides(Rows *rows, const Tensor &x)
{
    return {rows, x.strides()};
}

/* A problem and the tensors that it points into. */
class Inputs {
  public:
    Inputs(Operation operation, const Tensor &logits, const Tensor &dlogits, Tensor target)
    {
        Problem &p = problem;
        p.operation = operation;
        p.dloss = 1;
        p.logits.type = type_of(logits);
        p.logits.data = (char *)logits.data();
        require(logits.dim() > 0, "a class axis");
        const auto logits_rows = with_strides(&p.logits, logits);
        const auto dlogits_rows = with_strides(&p.dlogits, dlogits ? dlogits : logits);
        if (dlogits) {
            p.dlogits.type = p.logits.type;
            p.dlogits.data = (char *)dlogits.mutable_data();
        }
        has_probabilities = target.dim() == logits.dim();
        if (has_probabilities) {
            p.probabilities.type = type_of(target);
            p.probabilities.data = (char *)target.data();
            require(same_sizes(target, logits, logits.dim()), "probabilities in the shape of logits");
            set_rows(&p, logits.dim(), logits.sizes(),
                     {logits_rows, dlogits_rows, with_strides(&p.probabilities, target)});
        } else {
            require(target.dim() == logits.dim() - 1 && same_sizes(target, logits, target.dim()),
                    "a target for each row");
            require(number_type(target) == INT64, "probabilities in the shape of logits");
            set_rows(&p, logits.dim(), logits.sizes(), {logits_rows, dlogits_rows});
            target = contiguous(std::move(target), dtypes[INT64]);
            p.target = (const int64_t *)target.data();
        }
        require(p.n_classes > 0, "at least one class");
        uint32_t n_threads;
        check(torch_get_num_threads(&n_threads));
        p.n_threads = (int)n_threads;
        tensors_.push_back(std::move(target));
    }

    /* class weights in the type of the arithmetic; ones for none */
    void set_weight(Tensor weight)
    {
        Problem &p = problem;
        weights_.assign(p.n_classes + N_PARTIALS, 0);
        p.class_weight = weights_.data();
        if (weight) {
            require(weight.dim() == 1 && weight.numel() == p.n_classes, "a weight of each class");
            weight = contiguous(std::move(weight), dtypes[real()]);
        }
        const void *data = weight ? weight.data() : nullptr;
        for (int64_t c = 0; c < p.n_classes; c++) {
            double w = 1;
            if (real() == FLOAT64)
                weights_[c] = w = data ? ((const double *)data)[c] : 1;
            else
                ((float *)weights_.data())[c] = w = data ? ((const float *)data)[c] : 1;
            p.weight_sum += w;
        }
    }

    /* one number per row, or `n` of them; none for no tensor */
    void *of_rows(Tensor x, int64_t n = 1)
    {
        if (!x)
            return nullptr;
        require(x.numel() == n * problem.n_rows, "a coefficient of each row");
        tensors_.push_back(contiguous(std::move(x), dtypes[real()]));
        return (void *)tensors_.back().data();
    }

    Type real() const { return problem.logits.type == FLOAT64 ? FLOAT64 : FLOAT32; }

    /* computes, and returns the loss */
    double run()
    {
        double loss = 0;
        int64_t bad_target = 0;
        switch (run_cross_entropy(&problem, &loss, &bad_target)) {
        case OUT_OF_MEMORY: throw std::bad_alloc();
        case BAD_TARGET:
            throw std::out_of_range("cross_entropy needs target in [0, " +
                                    std::to_string(problem.n_classes) +
                                    ") or equal to ignore_index, got " + std::to_string(bad_target));
        default: return loss;
        }
    }

    Problem problem = {};
    bool has_probabilities;

  private:
    static bool same_sizes(const Tensor &x, const Tensor &y, int64_t n_axes)
    {
        return std::equal(x.sizes(), x.sizes() + n_axes, y.sizes());
    }

    std::vector<Tensor> tensors_;
    std::vector<double> weights_;
};

static double number_of(Tensor x)
{
    require(x.numel() == 1, "one number as denominator and dloss");
    const Type type = number_type(x);
    if (type != INT64)
        return load_number(x.data(), type);
    return *(const double *)contiguous(std::move(x), dtypes[FLOAT64]).data();
}

#endif
