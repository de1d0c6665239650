"""PyTorch's own test samples of these operators and modules, applied to this library.

The collections, and what they claim to be differentiable in which mode, come with the installed
PyTorch and grow with it: ``op_db`` and ``module_db``.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_map

import torch_softmax
from numerics import assert_agrees
from pairwise import covering

OPERATORS = {
    "softmax": torch_softmax.softmax,
    "log_softmax": torch_softmax.log_softmax,
    "nn.functional.cross_entropy": torch_softmax.cross_entropy,
}
MODULES = {
    "nn.Softmax": torch_softmax.Softmax,
    "nn.LogSoftmax": torch_softmax.LogSoftmax,
    "nn.CrossEntropyLoss": torch_softmax.CrossEntropyLoss,
}
OP_INFOS = [info for info in op_db if info.name in OPERATORS]
MODULE_INFOS = [info for info in module_db if info.name in MODULES]
# elements that a gradient check covers one by one in less than a second
SLOW_MODE_ELEMENTS = 100


def op_samples(info, dtype):
    """For each sample its arguments, the last of them the keywords."""
    draw()
    samples = info.sample_inputs("cpu", dtype, requires_grad=True)
    return [(sample.input, *sample.args, sample.kwargs) for sample in samples]


def module_samples(info, dtype):
    draw()
    return info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=True
    )


def module_errors(info):
    # absent in PyTorch 2.11
    collect = info.module_error_inputs_func or (lambda *_, **__: [])
    return collect(info, device="cpu", dtype=torch.double, requires_grad=True, training=True)


def draw():
    # with other seeds a sample ignores all its rows, whose mean, NaN, has no derivative
    torch.manual_seed(1)


def op_cases():
    return [
        pytest.param(info, index, id=f"{info.formatted_name}-{index}-{tuple(sample[0].shape)}")
        for info in OP_INFOS
        for index, sample in enumerate(op_samples(info, torch.double))
    ]


def module_cases():
    return [
        (info, index, sample)
        for info in MODULE_INFOS
        for index, sample in enumerate(module_samples(info, torch.double))
    ]


def module_settings(case):
    """What a sample of a module asks for, beside its numbers."""
    info, _, sample = case
    input, *target = sample.forward_input.args
    options = sample.constructor_input.kwargs
    return (
        info.name,
        input.dim(),
        bool(target) and target[0].is_floating_point(),
        options.get("reduction", "mean"),
        options.get("weight") is not None,
        options.get("label_smoothing", 0.0) > 0,
        options.get("ignore_index", -100) != -100,
    )


def each_module_sample(cases):
    return pytest.mark.parametrize(
        ("info", "index"),
        [
            pytest.param(info, index, id=f"{info.formatted_name}-{index}-{sample.desc}")
            for info, index, sample in cases
        ],
    )


def error_cases():
    return [
        pytest.param(info, index, id=f"{info.formatted_name}-{index}-{error.error_regex}")
        for info in MODULE_INFOS
        for index, error in enumerate(module_errors(info))
    ]


each_op_sample = pytest.mark.parametrize(("info", "index"), op_cases())


def test_conformance_collections_hold_samples():
    operators = {info.formatted_name: len(op_samples(info, torch.double)) for info in OP_INFOS}
    assert {info.name for info in OP_INFOS} == OPERATORS.keys()
    assert operators.pop("nn_functional_cross_entropy") >= 21
    assert len(operators) >= 4  # softmax and log_softmax, each with dtype too
    assert min(operators.values()) >= 7
    modules = {info.name: len(module_samples(info, torch.double)) for info in MODULE_INFOS}
    assert modules.keys() == MODULES.keys()
    assert modules["nn.CrossEntropyLoss"] >= 105
    assert min(modules.values()) >= 3
    errors = sum(len(module_errors(info)) for info in MODULE_INFOS)
    assert errors >= 10 or torch.__version__ < "2.15"


def differentiable(function, sample):
    """``function`` of those tensors alone that require a gradient, and these tensors."""
    *arguments, options = sample
    places = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.requires_grad]

    def of_inputs(*inputs):
        replaced = dict(zip(places, inputs, strict=True))
        return function(*(replaced.get(i, x) for i, x in enumerate(arguments)), **options)

    return of_inputs, tuple(arguments[i] for i in places)


def on_device(sample, device):
    def moved(x):
        return x.detach().to(device).requires_grad_(x.requires_grad) if torch.is_tensor(x) else x

    return tree_map(moved, sample)


@each_op_sample
def test_conformance_op_sample_has_torchs_value_and_gradients(info, index):
    sample = op_samples(info, torch.double)[index]
    *arguments, options = sample
    assert_agrees(OPERATORS[info.name], info.op, *arguments, **options)


@each_op_sample
def test_conformance_op_sample_has_torchs_results_from_the_kernels(info, index, kernel_device):
    sample = on_device(op_samples(info, torch.float)[index], kernel_device)
    *arguments, options = sample
    assert_agrees(OPERATORS[info.name], info.op, *arguments, **options)


def fast_mode(inputs):
    return sum(x.numel() for x in inputs) > SLOW_MODE_ELEMENTS


@each_op_sample
def test_conformance_op_sample_has_right_gradients_in_every_mode(info, index):
    sample = op_samples(info, torch.double)[index]
    function, inputs = differentiable(OPERATORS[info.name], sample)
    gradcheck(
        function,
        inputs,
        check_grad_dtypes=True,
        check_forward_ad=info.supports_forward_ad,
        check_batched_grad=info.check_batched_grad,
        check_batched_forward_grad=info.check_batched_forward_grad,
        nondet_tol=info.gradcheck_nondet_tol,
        fast_mode=fast_mode(inputs),
    )


@each_op_sample
def test_conformance_op_sample_has_right_second_gradients_in_every_mode(info, index):
    sample = op_samples(info, torch.double)[index]
    function, inputs = differentiable(OPERATORS[info.name], sample)
    assert info.supports_gradgrad
    gradgradcheck(
        function,
        inputs,
        check_grad_dtypes=True,
        check_fwd_over_rev=info.supports_fwgrad_bwgrad,
        check_rev_over_rev=True,
        check_batched_grad=info.check_batched_gradgrad,
        nondet_tol=info.gradcheck_nondet_tol,
        fast_mode=fast_mode(inputs),
    )


def ours_and_theirs(info, sample):
    arguments, options = sample.constructor_input.args, sample.constructor_input.kwargs
    return [module(*arguments, **options) for module in (MODULES[info.name], info.module_cls)]


def forward_arguments(sample):
    return (*sample.forward_input.args, sample.forward_input.kwargs)


@each_module_sample(module_cases())
def test_conformance_module_sample_has_torchs_value_and_gradients(info, index):
    sample = module_samples(info, torch.double)[index]
    ours, theirs = ours_and_theirs(info, sample)
    *arguments, options = forward_arguments(sample)
    assert_agrees(ours, theirs, *arguments, **options)


@each_module_sample(covering(module_cases(), module_settings))
def test_conformance_module_sample_has_torchs_results_from_the_kernels(info, index, kernel_device):
    sample = module_samples(info, torch.float)[index]
    modules = [*ours_and_theirs(info, sample), ours_and_theirs(info, sample)[1].double()]
    for module in modules:
        if kernel_device.type != "cpu" and getattr(module, "weight", None) is not None:
            # of either sign they nearly cancel in a sum, which a GPU's order makes all rounding
            module.weight.abs_()
    ours, theirs, exact = (module.to(kernel_device) for module in modules)
    *arguments, options = on_device(forward_arguments(sample), kernel_device)
    assert_agrees(ours, theirs, *arguments, exact=exact, **options)


@pytest.mark.parametrize(("info", "index"), error_cases())
def test_conformance_module_raises_torchs_errors(info, index):
    error = module_errors(info)[index]
    constructor = error.module_error_input.constructor_input
    forward = error.module_error_input.forward_input
    with pytest.raises(error.error_type):
        module = MODULES[info.name](*constructor.args, **constructor.kwargs)
        assert error.error_on is ModuleErrorEnum.FORWARD_ERROR, "the constructor let it pass"
        module(*forward.args, **forward.kwargs)
