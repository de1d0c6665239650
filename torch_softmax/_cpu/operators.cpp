/* The operators of cross-entropy for CPU tensors. They register themselves with PyTorch's
   dispatcher: calls through Python would take longer than the loss of few rows. */

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

/* the arguments of both operators of the loss */
struct LossArguments {
    Tensor logits, target, weight, denominator, dloss;
    int32_t dtype;
    bool with_gradient;
    int64_t ignore_index;
    std::string reduction;
    double label_smoothing, z_loss, softcap, logit_scale;

    LossArguments(StableIValue *stack, bool is_inplace)
    {
        Arguments arguments(stack);
        logits = arguments.tensor();
        target = arguments.tensor();
        weight = arguments.optional_tensor();
        denominator = arguments.optional_tensor();
        dtype = arguments.optional_dtype(logits.dtype());
        with_gradient = is_inplace || arguments.boolean();
        ignore_index = arguments.integer();
        reduction = arguments.string();
        label_smoothing = arguments.number();
        z_loss = arguments.number();
        softcap = arguments.optional_number(0);
        logit_scale = arguments.number();
        dloss = arguments.optional_tensor();
    }

    Tensor loss(const Tensor &dlogits)
    {
        Inputs inputs(LOSS, logits, dlogits, std::move(target));
        Problem &p = inputs.problem;
        if (weight || label_smoothing > 0)
            inputs.set_weight(std::move(weight));
        p.has_denominator = bool(denominator);
        if (denominator)
            p.denominator = number_of(std::move(denominator));
        p.is_mean = reduction == "mean";
        const bool is_reduced = p.is_mean || reduction == "sum";
        require(is_reduced || reduction == "none", "reduction to be 'mean', 'sum' or 'none'");
        require(is_reduced || !p.has_denominator, "denominator=None for reduction='none'");
        if (dloss && (is_reduced || dloss.numel() == 1))
            p.dloss = number_of(std::move(dloss));
        p.rows.dloss = inputs.of_rows(std::move(dloss));
        p.has_ignore_index = 1;
        p.ignore_index = ignore_index;
        p.nll_factor = 1 - label_smoothing;
        p.smooth_factor = label_smoothing / (double)p.n_classes;
        p.z_loss = z_loss;
        p.softcap = softcap;
        p.logit_scale = logit_scale;
        const std::vector<int64_t> batch(logits.sizes(), logits.sizes() + logits.dim() - 1);
        Tensor result = empty(is_reduced ? std::vector<int64_t>() : batch, dtype);
        p.loss_type = type_of(result);
        p.rows.loss = is_reduced ? nullptr : result.mutable_data();
        const double loss = inputs.run();
        if (is_reduced)
            store_number(result.mutable_data(), p.loss_type, loss);
        return result;
    }
};

static void cross_entropy_loss(StableIValue *stack, uint64_t, uint64_t)
{
    LossArguments args(stack, false);
    refuse_derivatives("cross_entropy_loss", {&args.logits, &args.target, &args.weight,
                                              &args.denominator, &args.dloss});
    Tensor dlogits = args.with_gradient ? empty_gradient_like(args.logits) : Tensor();
    Tensor loss = args.loss(dlogits);
    stack[1] = (dlogits ? std::move(dlogits) : empty({0}, args.logits.dtype())).release();
    stack[0] = loss.release();
}

static void cross_entropy_loss_inplace(StableIValue *stack, uint64_t, uint64_t)
{
    LossArguments args(stack, true);
    refuse_derivatives("cross_entropy_loss_inplace", {&args.logits, &args.target, &args.weight,
                                                      &args.denominator, &args.dloss});
    stack[0] = args.loss(args.logits).release();
}

static void cross_entropy_forward(StableIValue *stack, uint64_t, uint64_t)
{
    Arguments arguments(stack);
    Tensor logits = arguments.tensor(), target = arguments.tensor();
    Tensor weight = arguments.optional_tensor();
    const double logit_scale = arguments.number(), softcap = arguments.optional_number(0);
    const bool with_entropy = arguments.boolean();
    refuse_derivatives("cross_entropy_forward", {&logits, &target, &weight});
    Inputs inputs(FORWARD, logits, Tensor(), std::move(target));
    Problem &p = inputs.problem;
    p.logit_scale = logit_scale;
    p.softcap = softcap;
    if (weight)
        inputs.set_weight(std::move(weight));

    const int32_t dtype = dtypes[inputs.real()];
    std::vector<int64_t> batch(logits.sizes(), logits.sizes() + logits.dim() - 1);
    std::vector<Tensor> results;
    const auto output = [&](bool is_enabled, int32_t output_dtype) -> void * {
        results.push_back(empty(is_enabled ? batch : std::vector<int64_t>{0}, output_dtype));
        return is_enabled ? results.back().mutable_data() : nullptr;
    };
    p.rows.nll = output(true, dtype);
    p.rows.smooth = output(p.class_weight, dtype);
    p.rows.target_weight = output(inputs.has_probabilities, dtype);
    p.rows.lse = output(true, dtype);
    p.rows.entropy = output(with_entropy, dtype);
    p.rows.prediction = (int64_t *)output(with_entropy, dtypes[INT64]);
    batch.push_back(2);
    p.rows.softmax_stats = output(true, dtype);
    inputs.run();
    for (Tensor &result : results)
        *stack++ = result.release();
}

/* the gradient from coefficients of each row; returns it, or nothing where it overwrites the logits */
static Tensor gradient(StableIValue *stack, const char *name, bool is_inplace)
{
    Arguments arguments(stack);
    Tensor logits = arguments.tensor(), target = arguments.tensor();
    Tensor weight = arguments.optional_tensor(), softmax_stats = arguments.tensor();
    Tensor a = arguments.tensor(), b = arguments.tensor();
    Tensor s = arguments.optional_tensor(), e = arguments.optional_tensor();
    const double logit_scale = arguments.number(), softcap = arguments.optional_number(0);
    refuse_derivatives(name, {&logits, &target, &weight, &softmax_stats, &a, &b, &s, &e});
    Tensor dlogits = is_inplace ? Tensor() : empty_gradient_like(logits);
    Inputs inputs(BACKWARD, logits, dlogits ? dlogits : logits, std::move(target));
    Problem &p = inputs.problem;
    p.logit_scale = logit_scale;
    p.softcap = softcap;
    if (weight)
        inputs.set_weight(std::move(weight));
    p.rows.softmax_stats = inputs.of_rows(std::move(softmax_stats), 2);
    p.rows.a = inputs.of_rows(std::move(a));
    p.rows.b = inputs.of_rows(std::move(b));
    p.rows.s = inputs.of_rows(std::move(s));
    p.rows.e = inputs.of_rows(std::move(e));
    inputs.run();
    return dlogits;
}

static void cross_entropy_backward(StableIValue *stack, uint64_t, uint64_t)
{
    stack[0] = gradient(stack, "cross_entropy_backward", false).release();
}

static void cross_entropy_backward_inplace(StableIValue *stack, uint64_t, uint64_t)
{
    gradient(stack, "cross_entropy_backward_inplace", true);
}

static const struct {
    const char *name;
    Kernel kernel;
} OPERATORS[] = {
    {"cross_entropy_loss", cross_entropy_loss},
    {"cross_entropy_loss_inplace", cross_entropy_loss_inplace},
    {"cross_entropy_forward", cross_entropy_forward},
    {"cross_entropy_backward", cross_entropy_backward},
    {"cross_entropy_backward_inplace", cross_entropy_backward_inplace},
};

extern "C" {

/* Lets the operators serve CPU tensors until the result is given to remove_operators; NULL where
   this PyTorch lacks the interface. */
Library *register_operators(void)
{
    Library *library;
    if (!load_torch() ||
        aoti_torch_library_init_impl("torch_softmax", "CPU", __FILE__, __LINE__, &library))
        return nullptr;
    dtypes[FLOAT32] = aoti_torch_dtype_float32();
    dtypes[FLOAT64] = aoti_torch_dtype_float64();
    dtypes[BFLOAT16] = aoti_torch_dtype_bfloat16();
    dtypes[FLOAT16] = aoti_torch_dtype_float16();
    dtypes[INT64] = aoti_torch_dtype_int64();
    for (const auto &op : OPERATORS)
        if (torch_library_impl(library, op.name, op.kernel, TORCH_VERSION)) {
            aoti_torch_delete_library_object(library);
            return nullptr;
        }
    return library;
}

void remove_operators(Library *library)
{
    aoti_torch_delete_library_object(library);
}

/* Rows and classes of a tile of logits, the class axis last; a tile of one row has its classes
   rounded up to vectors. */
void tile_shape(int64_t dim, const int64_t *sizes, const int64_t *strides, int64_t shape[2])
{
    Problem p = {};
    set_rows(&p, dim, sizes, {{&p.logits, strides}});
    find_tile_shape(&p, shape);
}
}
