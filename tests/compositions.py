"""Functions of logits, and compositions of PyTorch's transforms of them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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


# each from a function of logits to another function of logits
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


# reverse mode around a dual level fails in PyTorch itself
DIFFERENTIABLE = sorted(COMPOSITIONS.keys() - {"forward mode"})
