/* The operators of cross-entropy for CPU tensors. They register themselves with PyTorch's
   dispatcher: calls through Python would take longer than the loss of few rows. */

#include "inputs.h"

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
