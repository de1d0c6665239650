/* The part of PyTorch's stable C interface that the operators use.

   torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h of PyTorch declare it. The
   functions are looked up when the operators are registered, in the libtorch_cpu of the process: so
   compiling needs no PyTorch, and the result serves every version from 2.10 on. */

#ifndef TORCH_SOFTMAX_TORCH_H
#define TORCH_SOFTMAX_TORCH_H

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

/* the version whose conventions the arguments of operators follow: 2.10 */
static const uint64_t TORCH_VERSION = 2ull << 56 | 10ull << 48;

/* an argument or result: the bits of a number, or a pointer, for optional values to another one */
using StableIValue = uint64_t;
using Kernel = void (*)(StableIValue *stack, uint64_t n_arguments, uint64_t n_results);
struct AtenTensor;
struct Library;
struct TorchString;

#define FOR_EACH_TORCH_FUNCTION(F)                                                                 \
    F(aoti_torch_library_init_impl, int32_t,                                                       \
      (const char *space, const char *key, const char *file, uint32_t line, Library **library))    \
    F(torch_library_impl, int32_t,                                                                 \
      (Library * library, const char *name, Kernel kernel, uint64_t version))                      \
    F(aoti_torch_delete_library_object, int32_t, (Library * library))                              \
    F(torch_call_dispatcher, int32_t,                                                              \
      (const char *name, const char *overload, StableIValue *stack, uint64_t version))             \
    F(aoti_torch_new_tensor_handle, int32_t, (AtenTensor * tensor, AtenTensor * *copy))            \
    F(aoti_torch_delete_tensor_object, int32_t, (AtenTensor * tensor))                             \
    F(aoti_torch_empty_strided, int32_t,                                                           \
      (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device,   \
       int32_t index, AtenTensor **result))                                                        \
    F(torch_get_const_data_ptr, int32_t, (AtenTensor * tensor, const void **data))                 \
    F(torch_get_mutable_data_ptr, int32_t, (AtenTensor * tensor, void **data))                     \
    F(aoti_torch_get_dim, int32_t, (AtenTensor * tensor, int64_t *dim))                            \
    F(aoti_torch_get_numel, int32_t, (AtenTensor * tensor, int64_t *numel))                        \
    F(aoti_torch_get_sizes, int32_t, (AtenTensor * tensor, int64_t **sizes))                       \
    F(aoti_torch_get_strides, int32_t, (AtenTensor * tensor, int64_t **strides))                   \
    F(aoti_torch_get_dtype, int32_t, (AtenTensor * tensor, int32_t *dtype))                        \
    F(aoti_torch_is_contiguous, int32_t, (AtenTensor * tensor, bool *is_contiguous))               \
    F(aoti_torch_grad_mode_is_enabled, bool, ())                                                   \
    F(torch_get_num_threads, int32_t, (uint32_t * n_threads))                                      \
    F(torch_string_c_str, int32_t, (TorchString * string, const char **characters))                \
    F(torch_delete_string, int32_t, (TorchString * string))                                        \
    F(aoti_torch_device_type_cpu, int32_t, ())                                                     \
    F(aoti_torch_memory_format_contiguous_format, int32_t, ())                                     \
    F(aoti_torch_dtype_float32, int32_t, ())                                                       \
    F(aoti_torch_dtype_float64, int32_t, ())                                                       \
    F(aoti_torch_dtype_bfloat16, int32_t, ())                                                      \
    F(aoti_torch_dtype_float16, int32_t, ())                                                       \
    F(aoti_torch_dtype_int64, int32_t, ())

#define DEFINE(name, result, parameters) static result(*name) parameters;
FOR_EACH_TORCH_FUNCTION(DEFINE)
#undef DEFINE

/* Whether all functions were found. */
static bool load_torch()
{
    void *library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library)
        return false;
#define LOAD(name, result, parameters)                                   \
    name = reinterpret_cast<result(*) parameters>(dlsym(library, #name)); \
    if (!name)                                                           \
        return false;
    FOR_EACH_TORCH_FUNCTION(LOAD)
#undef LOAD
    return true;
}

static void check(int32_t error)
{
    if (error)
        throw std::runtime_error("PyTorch failed in a call of an operator of torch_softmax");
}

static StableIValue bits_of(double x)
{
    StableIValue bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* an argument of optional type, whose owner is the called function */
static StableIValue optional(StableIValue value)
{
    return reinterpret_cast<StableIValue>(new StableIValue(value));
}

/* A tensor, or none, with one reference to it. */
class Tensor {
  public:
    Tensor() = default;
    explicit Tensor(StableIValue value) : tensor_(reinterpret_cast<AtenTensor *>(value)) {}
    Tensor(Tensor &&other) noexcept : tensor_(std::exchange(other.tensor_, nullptr)) {}
    Tensor &operator=(Tensor &&other) noexcept
    {
        std::swap(tensor_, other.tensor_);
        return *this;
    }
    ~Tensor()
    {
        if (tensor_)
            aoti_torch_delete_tensor_object(tensor_);
    }
    explicit operator bool() const { return tensor_ != nullptr; }

    int64_t dim() const { return get(aoti_torch_get_dim, int64_t()); }
    int64_t numel() const { return get(aoti_torch_get_numel, int64_t()); }
    const int64_t *sizes() const { return get(aoti_torch_get_sizes, (int64_t *)nullptr); }
    const int64_t *strides() const { return get(aoti_torch_get_strides, (int64_t *)nullptr); }
    int32_t dtype() const { return get(aoti_torch_get_dtype, int32_t()); }
    bool is_contiguous() const { return get(aoti_torch_is_contiguous, bool()); }
    const void *data() const { return get(torch_get_const_data_ptr, (const void *)nullptr); }
    void *mutable_data() const { return get(torch_get_mutable_data_ptr, (void *)nullptr); }

    /* another reference, for the stack of a call */
    StableIValue shared() const
    {
        return reinterpret_cast<StableIValue>(get_from(aoti_torch_new_tensor_handle));
    }
    /* this reference, as a result */
    StableIValue release() { return reinterpret_cast<StableIValue>(std::exchange(tensor_, nullptr)); }

  private:
    template <typename T> T get(int32_t (*function)(AtenTensor *, T *), T result) const
    {
        check(function(tensor_, &result));
        return result;
    }
    AtenTensor *get_from(int32_t (*function)(AtenTensor *, AtenTensor **)) const
    {
        return get(function, (AtenTensor *)nullptr);
    }

    AtenTensor *tensor_ = nullptr;
};

/* Takes the arguments of an operator from its stack, one after the other. */
class Arguments {
  public:
    explicit Arguments(StableIValue *stack) : next_(stack) {}
    Tensor tensor() { return Tensor(*next_++); }
    Tensor optional_tensor() { return Tensor(optional_value(0)); }
    int64_t integer() { return (int64_t)*next_++; }
    bool boolean() { return (*next_++ & 0xff) != 0; }
    double number() { return number_of(*next_++); }
    double optional_number(double otherwise) { return number_of(optional_value(bits_of(otherwise))); }
    int32_t optional_dtype(int32_t otherwise) { return (int32_t)optional_value((uint32_t)otherwise); }
    std::string string()
    {
        TorchString *string = reinterpret_cast<TorchString *>(*next_++);
        const char *characters;
        check(torch_string_c_str(string, &characters));
        const std::string copy(characters);
        check(torch_delete_string(string));
        return copy;
    }

  private:
    static double number_of(StableIValue bits)
    {
        double x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    StableIValue optional_value(StableIValue otherwise)
    {
        StableIValue *value = reinterpret_cast<StableIValue *>(*next_++);
        const StableIValue result = value ? *value : otherwise;
        delete value;
        return result;
    }

    StableIValue *next_;
};

static Tensor empty_strided(int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype)
{
    AtenTensor *result;
    check(aoti_torch_empty_strided(dim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &result));
    return Tensor(reinterpret_cast<StableIValue>(result));
}

static void call(const char *name, StableIValue *stack)
{
    check(torch_call_dispatcher(name, "", stack, TORCH_VERSION));
}

/* an uninitialized tensor in the layout of x */
static Tensor empty_like(const Tensor &x)
{
    if (x.is_contiguous())
        return empty_strided(x.dim(), x.sizes(), x.strides(), x.dtype());
    StableIValue stack[] = {x.shared(), 0, 0, 0, 0, 0};
    call("aten::empty_like", stack);
    return Tensor(stack[0]);
}

/* x contiguous and in a dtype, copied where it is not */
static Tensor contiguous(Tensor x, int32_t dtype)
{
    if (x.dtype() == dtype && x.is_contiguous())
        return x;
    const int32_t format = aoti_torch_memory_format_contiguous_format();
    StableIValue stack[] = {x.shared(), optional((uint32_t)dtype), 0, 0, 0, false, optional((uint32_t)format)};
    call("aten::_to_copy", stack);
    return Tensor(stack[0]);
}

static bool requires_grad(const Tensor &x)
{
    /* an alias of a tensor that requires grad is no leaf */
    StableIValue stack[] = {x.shared()};
    call("aten::alias", stack);
    call("aten::is_leaf", stack);
    return (stack[0] & 0xff) == 0;
}

#endif
