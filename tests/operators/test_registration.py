"""What PyTorch asks of an operator besides values: derivatives, transforms, compilation."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import torch_softmax
from torch_softmax import reference

TARGET = torch.tensor([[3, -100], [0, 1], [2, 2]])
WEIGHT = torch.tensor([0.5, 1.0, 1.5, 0.7], dtype=torch.double)


def cross_entropy(library, x, weight=None, **options):
    weight = None if weight is None else weight.to(x)
    return library.cross_entropy(x, TARGET.to(x.device), weight, **options)


def soft_cross_entropy(library, x, weight=None, **options):
    """With target probabilities that are a function of the logits, so that they have a gradient."""
    weight = None if weight is None else weight.to(x)
    return library.cross_entropy(x, F.softmax(x.flip(1), 1), weight, **options)


def statistics(library, x, **options):
    stats = library.cross_entropy_with_stats(x, TARGET.to(x.device), **options)
    return stats.loss.sum() + (stats.lse * stats.entropy).sum() + stats.entropy.square().sum()


# each from logits of shape (3, 4, 2), with the operators of torch_softmax or of PyTorch
FUNCTIONS = {
    "softmax": lambda library, x: library.softmax(x, 1),
    "log_softmax": lambda library, x: library.log_softmax(x, 1),
    "cross_entropy": cross_entropy,
    "weighted": partial(cross_entropy, weight=WEIGHT, reduction="sum"),
    "smoothed": partial(cross_entropy, label_smoothing=0.2, reduction="none"),
    "weighted and smoothed": partial(cross_entropy, weight=WEIGHT, label_smoothing=0.2),
    "probabilities": partial(soft_cross_entropy, label_smoothing=0.2),
    "weighted probabilities": partial(soft_cross_entropy, weight=WEIGHT, reduction="none"),
}
# these are torch_softmax's alone, and have no counterpart in PyTorch
OWN_FUNCTIONS = {
    "capped": partial(
        cross_entropy, weight=WEIGHT, label_smoothing=0.2, z_loss=0.1, softcap=2.0, logit_scale=0.7
    ),
    "capped probabilities": partial(
        soft_cross_entropy, label_smoothing=0.2, z_loss=0.1, softcap=2.0, logit_scale=0.7
    ),
    "statistics": statistics,
    "capped statistics": partial(statistics, softcap=2.0, logit_scale=-1.5, reduction="none"),
}


@pytest.fixture(params=FUNCTIONS)
def functions(request):
    """The same function of logits by torch_softmax and by PyTorch."""
    function = FUNCTIONS[request.param]
    return partial(function, torch_softmax), partial(function, F)


@pytest.fixture(params=FUNCTIONS | OWN_FUNCTIONS)
def function(request):
    return partial((FUNCTIONS | OWN_FUNCTIONS)[request.param], torch_softmax)


@pytest.fixture
def x(device):
    return torch.randn(3, 4, 2, dtype=torch.double, device=device, requires_grad=True)


def test_gradients_of_every_order_and_mode_are_right(function, x):
    # fast mode probes random directions: a kernel interpreted per element would take minutes
    gradcheck(function, x, fast_mode=True, check_forward_ad=True)
    gradgradcheck(function, x, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_batched_gradients_are_right(function):
    x = torch.randn(3, 4, 2, dtype=torch.double, requires_grad=True)
    gradcheck(
        function,
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian, torch.func.jacrev])
def test_function_transforms_agree_with_torch(transform, functions, x):
    actual, expected = (
        transform(lambda x, function=function: function(x).square().sum())(x.detach())
        for function in functions
    )
    torch.testing.assert_close(actual, expected)


def test_vmap_agrees_with_a_loop(function, device):
    x = torch.randn(2, 3, 4, 2, 5, dtype=torch.double, device=device)
    for in_dim, size in ((0, 2), (-1, 5)):
        samples = x[..., 0] if in_dim == 0 else x[0]
        expected = torch.stack([function(samples.select(in_dim, i)) for i in range(size)])
        torch.testing.assert_close(torch.func.vmap(function, in_dims=in_dim)(samples), expected)


def test_vmap_takes_a_weight_per_sample(device):
    logits = torch.randn(3, 5, 4, dtype=torch.double, device=device)
    target = torch.randint(4, (5,), device=device)
    weight = torch.rand(3, 4, dtype=torch.double, device=device)

    def gradient(logits, weight):
        return torch.func.grad(
            lambda x: torch_softmax.cross_entropy(x, target, weight, label_smoothing=0.1)
        )(logits)

    actual = torch.func.vmap(gradient)(logits, weight)
    expected = torch.stack([gradient(*pair) for pair in zip(logits, weight, strict=True)])
    torch.testing.assert_close(actual, expected)


def test_per_sample_gradients_agree_with_a_loop(device):
    logits = torch.randn(5, 4, dtype=torch.double, device=device)
    target = torch.tensor([0, 3, -100, 1, 2], device=device)

    def loss(logits, target):
        return torch_softmax.cross_entropy(logits, target, reduction="sum")

    actual = torch.func.vmap(torch.func.grad(loss))(logits, target)
    expected = torch.func.grad(loss)(logits, target)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_makes_one_graph_with_the_same_results(function, dynamic, device):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x = torch.randn(3, 4, 2, device=device, requires_grad=True)
    results = []
    for f in (compiled, function):
        y = f(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(*results)


def test_compile_with_inductor_gives_the_same_results():
    torch._dynamo.reset()
    function = partial(FUNCTIONS["weighted and smoothed"], torch_softmax)
    x = torch.randn(3, 4, 2, requires_grad=True)
    results = []
    for f in (torch.compile(function, fullgraph=True), function):
        y = f(x)
        results.append((y, *torch.autograd.grad(y, x)))
    torch.testing.assert_close(*results)


OPERATORS = torch.ops.torch_softmax


def operator_arguments(device):
    """Arguments for every registered operator, with the class axis where it is not contiguous."""
    x = torch.randn(2, 5, 3, device=device).transpose(1, 2)
    y = torch.softmax(x, -1)
    target = torch.randint(5, x.shape[:-1], device=device)
    weight = torch.rand(5, device=device)
    rows = torch.rand(x.shape[:-1], device=device)
    plain, capped = (1.0, None), (1.5, 2.0)
    softmax_stats = reference.cross_entropy_forward(x, target, None)[-1]
    indices = (x, target, weight, softmax_stats, rows, rows, rows, rows)
    shares = (x, y, weight, *indices[3:])
    return {
        "softmax_forward": [(x, torch.float32), (x.bfloat16(), torch.float64)],
        "softmax_backward": [(x, y, torch.float32), (x[:, ::2, :1], y[:, ::2, :1], torch.float16)],
        "log_softmax_forward": [(x, torch.float32)],
        "log_softmax_backward": [(x, y, torch.float32)],
        "cross_entropy_forward": [
            (x, target, None, *plain, False),
            (x, target, weight, *capped, True),
            (x.half(), y, None, *plain, False),
            (x, y, weight, *capped, True),
        ],
        "cross_entropy_backward": [
            (x, target, None, *indices[3:6], None, None, *plain),
            (*indices, *capped),
            (x, y, None, *shares[3:6], None, None, *plain),
            (*shares, *capped),
        ],
        "cross_entropy_backward_inplace": [(x.clone(), *indices[1:], *capped)],
        "cross_entropy_step": [
            (x, target, None, rows, None, None, *plain),
            (x.half(), target, weight, rows, rows, rows, *capped),
            (x, y, None, rows, None, None, *plain),
            (x, y, weight, rows, rows, rows, *capped),
        ],
        "cross_entropy_step_inplace": [
            (x.clone(), target, weight, rows, rows, rows, *capped),
            (x.clone(), y, None, rows, None, None, *plain),
        ],
        "scale_inplace": [(x.clone(), torch.tensor(2.0, device=device))],
    }


@pytest.mark.parametrize("name", operator_arguments("cpu"))
def test_opcheck_finds_no_fault_in_the_registration(name, device):
    for arguments in operator_arguments(device)[name]:
        torch.library.opcheck(getattr(OPERATORS, name).default, arguments)


def test_opcheck_is_asked_of_every_operator():
    registered = {
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torch_softmax::")
    }
    assert registered == set(operator_arguments("cpu"))


def test_reference_defines_what_the_kernels_compute(kernel_device):
    samples = operator_arguments(kernel_device)
    for arguments in samples.pop("cross_entropy_backward_inplace"):
        expected = reference.cross_entropy_backward(*arguments)
        OPERATORS.cross_entropy_backward_inplace(*arguments)
        torch.testing.assert_close(arguments[0], expected, check_stride=False)
    for arguments in samples.pop("cross_entropy_step_inplace"):
        *expected, dlogits = reference.cross_entropy_step(*arguments)
        losses = OPERATORS.cross_entropy_step_inplace(*arguments)
        torch.testing.assert_close(
            [*losses, arguments[0]], [*expected, dlogits], check_stride=False
        )
    for x, factor in samples.pop("scale_inplace"):
        expected = x * factor
        OPERATORS.scale_inplace(x, factor)
        assert torch.equal(x, expected)
    for name in samples:
        for arguments in samples[name]:
            torch.testing.assert_close(
                getattr(OPERATORS, name)(*arguments),
                getattr(reference, name)(*arguments),
                check_stride=False,
            )
