"""PyTorch's own samples of ``linear_cross_entropy``, computed by ours.

The collections come with the installed PyTorch: the plain form, and two of its chunked form, whose
``options`` say only how large a chunk is. The kernels and the gradient checks take samples in which
all pairs of settings occur, and with --all every sample.
"""

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db

import torch_softmax
from numerics import assert_agrees
from pairwise import covering

COLLECTIONS = {
    info.formatted_name: info for info in op_db if info.name == "nn.functional.linear_cross_entropy"
}
# what a gradient check takes element by element in less than a second
SLOW_MODE_ELEMENTS = 40

pytestmark = pytest.mark.skipif(not COLLECTIONS, reason="needs PyTorch 2.13 for its samples")


# drawn once: each test takes one sample, and drawing a collection takes a tenth of a second
@functools.cache
def samples(name, dtype):
    """Arguments of each sample, the bias among them, and its keywords without ``options``."""
    torch.manual_seed(1)
    found = []
    for sample in COLLECTIONS[name].sample_inputs("cpu", dtype, requires_grad=True):
        keywords = {name: x for name, x in sample.kwargs.items() if name != "options"}
        found.append(((sample.input, *sample.args, keywords.pop("linear_bias", None)), keywords))
    return found


CASES = [(name, i) for name in COLLECTIONS for i in range(len(samples(name, torch.double)))]


def settings(case):
    """What a sample asks for, beside its numbers."""
    name, index = case
    (input, linear_weight, target, bias), options = samples(name, torch.double)[index]
    return (
        name,
        input.dim(),
        linear_weight.dim(),
        target.is_floating_point(),
        bias is not None,
        options.get("reduction", "mean"),
        options.get("weight") is not None,
        options.get("label_smoothing", 0.0) > 0,
        options.get("ignore_index", -100) != -100,
    )


COVERING = covering(CASES, settings)


def each_sample(cases=CASES):
    """Each of ``cases``, and with --all the others."""
    return pytest.mark.parametrize(
        ("name", "index"),
        [
            pytest.param(
                *case,
                id="-".join(map(str, case)),
                marks=() if case in cases else pytest.mark.exhaustive,
            )
            for case in CASES
        ],
    )


def ours(input, linear_weight, target, linear_bias, **options):
    return torch_softmax.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, chunk_size=3, **options
    )


def theirs(input, linear_weight, target, linear_bias, **options):
    return torch.nn.functional.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, **options
    )


@each_sample()
def test_linear_conformance_sample_has_torchs_value_and_gradients(name, index):
    arguments, options = samples(name, torch.double)[index]
    assert_agrees(ours, theirs, *arguments, **options)


@each_sample()
def test_linear_conformance_sample_has_torchs_results_in_float32(name, index):
    arguments, options = samples(name, torch.float)[index]
    assert_agrees(ours, theirs, *arguments, **options)


@each_sample(COVERING)
def test_linear_conformance_sample_has_torchs_results_from_the_kernels(name, index, kernel_device):
    arguments, options = samples(name, torch.float)[index]

    def moved(x):
        return x if x is None else x.detach().to(kernel_device).requires_grad_(x.requires_grad)

    options = {name: moved(x) if torch.is_tensor(x) else x for name, x in options.items()}
    assert_agrees(ours, theirs, *map(moved, arguments), **options)


@each_sample(COVERING)
def test_linear_conformance_sample_has_right_gradients_in_every_mode(name, index):
    arguments, options = samples(name, torch.double)[index]
    inputs, function = differentiable(arguments, options)
    fast_mode = sum(x.numel() for x in inputs) > SLOW_MODE_ELEMENTS
    checks = {"check_batched_grad": True, "check_grad_dtypes": True, "fast_mode": fast_mode}
    gradcheck(function, inputs, check_forward_ad=True, check_batched_forward_grad=True, **checks)
    gradgradcheck(function, inputs, check_fwd_over_rev=True, **checks)


def differentiable(arguments, options):
    """The tensors that want a gradient, and the loss as a function of them."""
    places = [i for i, x in enumerate(arguments) if x is not None and x.requires_grad]

    def function(*inputs):
        replaced = dict(zip(places, inputs, strict=True))
        return ours(*(replaced.get(i, x) for i, x in enumerate(arguments)), **options)

    return tuple(arguments[i] for i in places), function


def test_linear_conformance_collections_hold_samples():
    assert sum(len(samples(name, torch.double)) for name in COLLECTIONS) >= 300
