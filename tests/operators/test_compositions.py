"""Every composition of transforms gives the value of PyTorch's own function, or raises an error."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torch_softmax

TARGET = torch.tensor([2, 0, -100])
WEIGHT = torch.tensor([0.5, 1.0, 1.5, 0.7], dtype=torch.double)
SOFTCAP = {"softcap": 2.0, "logit_scale": 0.7}


class Functions(NamedTuple):
    """A function of logits of shape (3, 4): ours, and the same made of PyTorch's own operators."""

    ours: Callable
    torchs: Callable


def in_both(function):
    return Functions(partial(function, torch_softmax), partial(function, F))


def torch_capped_loss(x):
    x = 2.0 * torch.tanh(0.7 * x / 2.0)
    z = (torch.logsumexp(x, -1).square() * (TARGET != -100)).sum()
    return F.cross_entropy(x, TARGET, reduction="sum") + 0.1 * z


def our_statistics(x):
    stats = torch_softmax.cross_entropy_with_stats(x, TARGET, reduction="none")
    return stats.loss + stats.lse * stats.entropy


def torch_statistics(x):
    log_p = F.log_softmax(x, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return F.cross_entropy(x, TARGET, reduction="none") + torch.logsumexp(x, -1) * entropy


FUNCTIONS = {
    "softmax": in_both(lambda library, x: library.softmax(x, -1)),
    "log_softmax": in_both(lambda library, x: library.log_softmax(x, 0)),
    "mean": in_both(lambda library, x: library.cross_entropy(x, TARGET)),
    "weighted sum": in_both(
        lambda library, x: library.cross_entropy(
            x, TARGET, WEIGHT, label_smoothing=0.2, reduction="sum"
        )
    ),
    "none": in_both(lambda library, x: library.cross_entropy(x, TARGET, reduction="none")),
    "probabilities": in_both(
        lambda library, x: library.cross_entropy(x, F.softmax(x.flip(1), 1), label_smoothing=0.2)
    ),
    "softcap": Functions(
        lambda x: torch_softmax.cross_entropy(x, TARGET, reduction="sum", z_loss=0.1, **SOFTCAP),
        torch_capped_loss,
    ),
    "statistics": Functions(our_statistics, torch_statistics),
}


def scalar(f):
    """A sum in which no two elements of f count alike, and that has derivatives of all orders."""

    def of(x):
        y = f(x)
        return (y * torch.arange(1, y.numel() + 1, dtype=y.dtype).view(y.shape)).square().sum()

    return of


def tangent(x):
    return torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)


def forward_ad_derivative(f):
    def derivative(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent(x)))).tangent

    return derivative


def over_vmap(f):
    """Of samples (2, 3, 4) made of x, for derivatives around a vmap."""
    return lambda x: vmap(f)(torch.stack([x, x.flip(0)]))


def of_samples(transform):
    return lambda f: over_vmap(transform(f))


# each transforms a function of logits into another one
COMPOSITIONS = {
    "grad": lambda f: grad(scalar(f)),
    "vjp": lambda f: lambda x: vjp(scalar(f), x)[1](torch.ones((), dtype=x.dtype))[0],
    "jvp": lambda f: lambda x: jvp(f, (x,), (tangent(x),))[1],
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "jacrev jacrev": lambda f: jacrev(jacrev(f)),
    "jacfwd jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jacrev jacfwd": lambda f: jacrev(jacfwd(f)),
    "jvp grad": lambda f: lambda x: jvp(grad(scalar(f)), (x,), (tangent(x),))[1],
    "grad grad": lambda f: grad(scalar(grad(scalar(f)))),
    "grad jvp": lambda f: grad(scalar(COMPOSITIONS["jvp"](f))),
    "jvp jvp": lambda f: COMPOSITIONS["jvp"](COMPOSITIONS["jvp"](f)),
    "vmap": lambda f: over_vmap(f),
    "vmap grad": of_samples(lambda f: grad(scalar(f))),
    "vmap jvp": of_samples(lambda f: COMPOSITIONS["jvp"](f)),
    "vmap hessian": of_samples(lambda f: hessian(scalar(f))),
    "vmap vmap": of_samples(over_vmap),
    "grad vmap": lambda f: grad(scalar(over_vmap(f))),
    "jacfwd vmap": lambda f: jacfwd(over_vmap(f)),
    "grad vmap grad": lambda f: grad(scalar(over_vmap(grad(scalar(f))))),
    "jacfwd jacfwd grad": lambda f: jacfwd(jacfwd(grad(scalar(f)))),
    "hessian vmap": lambda f: hessian(scalar(over_vmap(f))),
    "forward mode": forward_ad_derivative,
}


def around(f):
    """Autograd around a composition, which is compiled with what it contains."""
    return lambda x: torch.autograd.grad(scalar(f)(x), x)[0]


def logits():
    return torch.randn(3, 4, dtype=torch.double)


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_composition_has_torchs_value(name, composition):
    transform, x = COMPOSITIONS[composition], logits()
    actual, expected = (transform(f)(x) for f in FUNCTIONS[name])
    torch.testing.assert_close(actual, expected)


# reverse mode around a forward-mode level fails in PyTorch itself
DIFFERENTIABLE = COMPOSITIONS.keys() - {"forward mode"}


@pytest.mark.parametrize("composition", sorted(DIFFERENTIABLE))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_composition_has_torchs_derivative(name, composition):
    transform, x = COMPOSITIONS[composition], logits().requires_grad_()
    actual, expected = (around(transform(f))(x) for f in FUNCTIONS[name])
    torch.testing.assert_close(actual, expected)


def compiled(function, backend):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_composition_has_torchs_value(name, composition):
    ours, torchs = map(COMPOSITIONS[composition], FUNCTIONS[name])
    x = logits()
    torch.testing.assert_close(compiled(ours, "aot_eager")(x), torchs(x))


@pytest.mark.parametrize("composition", sorted(DIFFERENTIABLE))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_composition_has_torchs_derivative(name, composition):
    ours, torchs = map(COMPOSITIONS[composition], FUNCTIONS[name])
    x = logits().requires_grad_()
    actual = around(compiled(ours, "aot_eager"))(x)
    torch.testing.assert_close(actual, around(torchs)(x))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_inductor_compiles_the_composition(composition):
    """Of all functions at once: a compilation takes seconds."""
    transform, x = COMPOSITIONS[composition], logits()
    ours, torchs = zip(*FUNCTIONS.values(), strict=True)
    actual = compiled(lambda x: [transform(f)(x) for f in ours], "inductor")(x)
    torch.testing.assert_close(actual, [transform(f)(x) for f in torchs])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transform_of_a_compiled_function_has_torchs_value(name):
    ours, torchs = FUNCTIONS[name]
    for composition in ("grad", "jvp", "hessian", "vmap", "vmap grad"):
        transform, x = COMPOSITIONS[composition], logits()
        torch._dynamo.reset()
        actual = transform(torch.compile(ours, backend="aot_eager"))(x)
        torch.testing.assert_close(actual, transform(torchs)(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_of_the_gradient_has_torchs_value(name):
    x = logits().requires_grad_()
    results = []
    for f in FUNCTIONS[name]:
        (gradient,) = torch.autograd.grad(scalar(f)(x), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x, create_graph=True)
        results.append((gradient, second, *torch.autograd.grad(second.square().sum(), x)))
    torch.testing.assert_close(*results)


def test_compiled_per_sample_gradients_are_torchs():
    w, a, b = logits(), torch.randn(5, 3, dtype=torch.double), torch.randint(4, (5,))
    results = []
    for library in (torch_softmax, F):
        loss = lambda w, a, b, library=library: library.cross_entropy(a @ w, b)  # noqa: E731
        per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
        results.append(
            compiled(per_sample, "aot_eager")(w, a, b)
            if library is torch_softmax
            else per_sample(w, a, b)
        )
    torch.testing.assert_close(*results)
