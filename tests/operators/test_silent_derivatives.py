"""Derivatives that could be lost without an error: each is right, or raises by name."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import torch_softmax

LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.3, 0.1]], dtype=torch.double)
TARGET = torch.tensor([2, 0])
FUNCTIONS = {
    "softmax": lambda x: torch_softmax.softmax(x, 1).square().sum(),
    "log_softmax": lambda x: torch_softmax.log_softmax(x, 1).square().sum(),
    "mean": lambda x: torch_softmax.cross_entropy(x, TARGET),
    "none": lambda x: torch_softmax.cross_entropy(x, TARGET, reduction="none").square().sum(),
}
TORCH = {
    "softmax": lambda x: F.softmax(x, 1).square().sum(),
    "log_softmax": lambda x: F.log_softmax(x, 1).square().sum(),
    "mean": lambda x: F.cross_entropy(x, TARGET),
    "none": lambda x: F.cross_entropy(x, TARGET, reduction="none").square().sum(),
}


def penalized_gradient(function):
    """The gradient of a loss with a penalty of its gradient, as for smooth classifiers."""
    x = LOGITS.clone().requires_grad_()
    loss = function(x)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(loss + gradient.square().sum(), x)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_penalty_is_torchs(name):
    torch.testing.assert_close(penalized_gradient(FUNCTIONS[name]), penalized_gradient(TORCH[name]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_penalty_of_a_compiled_function_raises(name):
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], backend="aot_eager", fullgraph=True)
    x = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    # PyTorch 2.11 gives the gradient no graph
    with pytest.raises(RuntimeError, match=r"double backward|does not require grad"):
        gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_penalty_under_compiled_autograd_is_torchs(name):
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        actual = penalized_gradient(FUNCTIONS[name])
    torch.testing.assert_close(actual, penalized_gradient(TORCH[name]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode_recompiles_what_was_compiled_without_it(name):
    def tangent(function):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(LOGITS, LOGITS.square())
            return forward_ad.unpack_dual(function(x)).tangent

    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], backend="aot_eager")
    compiled(LOGITS)
    torch.testing.assert_close(tangent(compiled), tangent(TORCH[name]))


@pytest.mark.parametrize("option", ["label_smoothing", "z_loss", "softcap", "logit_scale"])
def test_options_that_require_grad_are_refused(option):
    value = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match=f"needs {option} to be a constant"):
        torch_softmax.cross_entropy(LOGITS, TARGET, **{option: value})
    with pytest.raises(TypeError, match=f"needs {option} to be a constant"):
        torch.func.grad(lambda v: torch_softmax.cross_entropy(LOGITS, TARGET, **{option: v}))(
            value.detach()
        )


@pytest.mark.parametrize(
    "options",
    [{}, {"z_loss": 0.1}, {"softcap": 3.0}, {"label_smoothing": 0.1}, {"reduction": "none"}],
    ids=str,
)
def test_ignored_nan_has_no_gradient_of_any_order(options):
    x = torch.tensor([[torch.nan, 1.0, 2.0], [0.1, 0.2, 0.3]], dtype=torch.double)
    target = torch.tensor([-100, 1])

    def loss(x):
        return torch_softmax.cross_entropy(x, target, **options).square().sum()

    x.requires_grad_()
    (plain,) = torch.autograd.grad(loss(x), x)
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(first, plain)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), plain)
    assert plain[0].eq(0).all() and second[0].eq(0).all() and second.isfinite().all()


def test_gradient_of_class_weights_is_finite_beside_infinite_logits():
    x = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 1.0, 2.0]], dtype=torch.double)
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.double)
    w = torch.ones(3, dtype=torch.double, requires_grad=True)
    (plus,) = torch.autograd.grad(torch_softmax.cross_entropy(x, p, w), w)
    (minus,) = torch.autograd.grad(-torch_softmax.cross_entropy(x, p, w), w)
    torch.testing.assert_close(minus, -plus)


@pytest.mark.parametrize("soft", [False, True])
def test_transforms_leave_infinities_where_they_are(soft):
    inf = torch.inf
    x = torch.tensor([[-inf, 1.0, 2.0], [-inf, -inf, -inf], [0.1, -inf, 0.3]], dtype=torch.double)
    target = torch.tensor([0, 1, 2])
    target = F.one_hot(target, 3).double() if soft else target
    weight = torch.tensor([0.0, 1.0, 2.0], dtype=torch.double)

    def loss(x):
        return torch_softmax.cross_entropy(x, target, weight, reduction="none")

    mapped = torch.func.vmap(lambda x: loss(x))(x.unsqueeze(0))[0]
    torch.testing.assert_close(mapped, loss(x), equal_nan=True)


def test_inplace_refuses_a_base_that_retains_its_gradient():
    base = torch.randn(6, requires_grad=True) * 1
    base.retain_grad()
    with pytest.raises(ValueError, match="retain_grad"):
        torch_softmax.cross_entropy(base.view(2, 3), TARGET, inplace=True)


def test_compiled_functions_take_numpy_integers():
    np = pytest.importorskip("numpy")
    ignore_index = np.int64(2)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: torch_softmax.cross_entropy(x, TARGET, ignore_index=ignore_index),
        backend="aot_eager",
        fullgraph=True,
    )
    torch.testing.assert_close(compiled(LOGITS), F.cross_entropy(LOGITS, TARGET, ignore_index=2))


@pytest.mark.parametrize("n_classes", [4, 20000])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_row_whose_loss_has_no_gradient_has_none_whatever_it_holds(n_classes, bad, create_graph):
    x = torch.randn(3, n_classes)
    x[1, :2] = bad
    x.requires_grad_()
    losses = torch_softmax.cross_entropy(x, torch.tensor([0, 1, 2]), reduction="none")
    incoming = torch.tensor([1.0, 0.0, 1.0])
    (gradient,) = torch.autograd.grad(losses, x, incoming, create_graph=create_graph)
    assert (gradient[1] == 0).all() and gradient.isfinite().all()
    if create_graph:
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        assert (second[1] == 0).all() and second.isfinite().all()
