"""Derivatives of linear cross-entropy of every kind: right, or computed from all logits."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import torch_softmax
from linear_heads import linear_definition, random_head
from torch_softmax._ops import linear_chunks

each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def double_head(device="cpu"):
    return random_head(6, 3, 4, device=device, dtype=torch.double)


def loss_of(target, **options):
    """Our loss as a function of the three tensors that train."""

    def loss(x, linear_weight, bias):
        return torch_softmax.linear_cross_entropy(
            x, linear_weight, target, linear_bias=bias, chunk_size=2, **options
        )

    return loss


def definition_of(target, **options):
    return lambda x, weight, bias: linear_definition(x, weight, target, linear_bias=bias, **options)


@each_reduction
def test_linear_cross_entropy_has_derivatives_of_every_order_and_mode(reduction):
    x, weight, target, bias = double_head()
    loss = loss_of(target, reduction=reduction, z_loss=0.1, label_smoothing=0.1)
    gradcheck(
        loss,
        (x, weight, bias),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    gradgradcheck(loss, (x, weight, bias), check_fwd_over_rev=True, check_batched_grad=True)


@each_reduction
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd, torch.func.hessian])
def test_linear_cross_entropy_serves_function_transforms(transform, reduction, device):
    x, weight, target, bias = (y.detach() for y in double_head(device))
    actual, expected = (
        transform(function, argnums=(0, 1, 2))(x, weight, bias)
        for function in (
            loss_of(target, reduction=reduction),
            definition_of(target, reduction=reduction),
        )
    )
    torch.testing.assert_close(actual, expected)


def test_linear_cross_entropy_gives_gradients_per_sample(device):
    x, weight, target, bias = (y.detach() for y in double_head(device))

    def gradient(x, target):
        return torch.func.grad(loss_of(target, reduction="sum"))(x, weight, bias)

    expected = torch.stack([gradient(*pair) for pair in zip(x, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(gradient)(x, target), expected)


@each_reduction
def test_linear_cross_entropy_is_not_scaled_again_by_a_second_backward(reduction, device):
    x, weight, target, bias = double_head(device)
    y = loss_of(target, reduction=reduction)(x, weight, bias)
    dy = torch.rand_like(y)
    for factor in (3, 0.5):
        y.backward(factor * dy, retain_graph=True)
    expected = definition_of(target, reduction=reduction)(x, weight, bias)
    gradients = torch.autograd.grad(expected, (x, weight, bias), 3.5 * dy)
    torch.testing.assert_close((x.grad, weight.grad, bias.grad), gradients)


@each_reduction
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_linear_cross_entropy_may_be_checkpointed(use_reentrant, reduction, device):
    x, weight, target, bias = double_head(device)
    loss = loss_of(target, reduction=reduction)
    results = []
    for y in (
        loss(x, weight, bias),
        checkpoint(loss, x, weight, bias, use_reentrant=use_reentrant),
    ):
        y.sum().backward()
        results.append([y.detach(), x.grad, weight.grad, bias.grad])
        x.grad = weight.grad = bias.grad = None
    torch.testing.assert_close(*results)


@each_reduction
def test_linear_cross_entropy_may_keep_its_tensors_elsewhere(reduction, device):
    x, weight, target, bias = double_head(device)
    loss = loss_of(target, reduction=reduction)
    expected = torch.autograd.grad(loss(x, weight, bias).sum(), (x, weight, bias))
    with torch.autograd.graph.saved_tensors_hooks(lambda y: y.clone(), lambda y: y.clone()):
        total = loss(x, weight, bias).sum()
    torch.testing.assert_close(torch.autograd.grad(total, (x, weight, bias)), expected)


def test_linear_cross_entropy_differentiates_a_weight_that_depends_on_the_input(device):
    """The tensors of one call may be functions of each other, also in second derivatives."""
    x, _, target, bias = double_head(device)
    target, n_classes = target[:4], 4

    def penalty(function):
        weight = 0.5 * x[:n_classes].square()
        loss = function(x[:4], weight, bias)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    torch.testing.assert_close(penalty(loss_of(target)), penalty(definition_of(target)))


@each_reduction
@pytest.mark.parametrize("is_soft", [False, True])
def test_linear_cross_entropy_compiles_into_one_graph(is_soft, reduction, device):
    x, weight, target, bias = double_head(device)
    if is_soft:
        target = torch.softmax(torch.randn_like(x[:, :1].expand(6, 4)), -1)
    torch._dynamo.reset()
    loss = loss_of(target, reduction=reduction)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        y = function(x, weight, bias)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))])
    torch.testing.assert_close(*results)


# the tensors that require gradients: 0 is x, 1 the weight, 3 the bias
@pytest.mark.parametrize("wanted", [(0,), (1,), (1, 3)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivative_of_compiled_linear_cross_entropy_raises(reduction, wanted):
    head = random_head(dtype=torch.double)
    tensors = [y.detach().requires_grad_(i in wanted) for i, y in enumerate(head) if i != 2]
    target = head[2]
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(x, linear_weight, linear_bias):
        return torch_softmax.linear_cross_entropy(
            x, linear_weight, target, linear_bias=linear_bias, reduction=reduction
        )

    loss = compiled(*tensors).sum()
    inputs = [y for y in tensors if y.requires_grad]
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in gradients)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss + penalty, inputs)


def test_linear_cross_entropy_of_no_features_compiles():
    x, weight = torch.zeros(3, 0, requires_grad=True), torch.zeros(5, 0, requires_grad=True)
    target = torch.tensor([0, 1, 2])
    torch._dynamo.reset()
    compiled = torch.compile(torch_softmax.linear_cross_entropy, backend="aot_eager")
    loss = compiled(x, weight, target)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(5.0).log())


# torch.compile looks at the gradient of inputs that are not leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@each_reduction
def test_linear_cross_entropy_serves_compiled_autograd(reduction):
    x, weight, target, bias = double_head()
    loss = loss_of(target, reduction=reduction)
    expected = torch.autograd.grad(3 * loss(x, weight, bias).sum(), (x, weight, bias))
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        (3 * loss(x, weight, bias).sum()).backward()
    torch.testing.assert_close((x.grad, weight.grad, bias.grad), expected)


@torch._dynamo.config.patch(error_on_recompile=True)
def test_linear_cross_entropy_is_compiled_once_for_any_number_of_rows(device):
    torch._dynamo.reset()
    compiled = torch.compile(
        torch_softmax.linear_cross_entropy, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n_rows in (6, 8, 10):
        x, weight, target, bias = random_head(n_rows, device=device)
        x, target = x.detach().view(2, -1, 5).requires_grad_(), target.view(2, -1)
        results = []
        for function in (compiled, torch_softmax.linear_cross_entropy):
            y = function(x, weight, target, linear_bias=bias)
            results.append([y, *torch.autograd.grad(y, (x, weight, bias))])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("strict", [False, True])
def test_linear_cross_entropy_is_exported_as_pytorchs_operators(strict):
    loss = torch_softmax.LinearCrossEntropyLoss(3, 5, bias=True, z_loss=0.1, chunk_size=2)
    arguments = (torch.randn(4, 3), torch.tensor([0, 4, -100, 1]))
    program = torch.export.export(loss, arguments, strict=strict)
    assert "torch_softmax" not in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), loss(*arguments))


def weight_gradient_of_backward(loss, weight):
    return torch.autograd.grad(loss(weight), weight)[0]


def weight_gradient_with_a_graph(loss, weight):
    return torch.autograd.grad(loss(weight), weight, create_graph=True)[0]


def weight_gradient_of_a_transform(loss, weight):
    return torch.func.grad(loss)(weight)


@pytest.mark.parametrize(
    "weight_gradient",
    [
        weight_gradient_of_backward,
        weight_gradient_with_a_graph,
        weight_gradient_of_a_transform,
    ],
)
@pytest.mark.parametrize(
    ("reduction", "class_weight", "can_skip_rows"),
    [("mean", False, True), ("mean", False, False), ("none", False, True), ("mean", True, True)],
)
def test_features_of_an_ignored_row_never_reach_the_gradient(
    weight_gradient, reduction, class_weight, can_skip_rows, monkeypatch
):
    if not can_skip_rows:
        # as on a GPU with chunk_size, where their number is not read
        monkeypatch.setattr(linear_chunks, "_may_count", lambda ignored, chunk_size: False)
    x, weight, target, bias = random_head(dtype=torch.float64)
    options = {"linear_bias": bias, "reduction": reduction, "label_smoothing": 0.1}
    if class_weight:
        # PyTorch's loss has no derivative in class weights under torch.func
        has_gradient = weight_gradient is not weight_gradient_of_a_transform
        options["weight"] = torch.rand(len(weight), dtype=x.dtype, requires_grad=has_gradient)

    def loss(weight, x):
        return torch_softmax.linear_cross_entropy(x, weight, target, **options).sum()

    expected = weight_gradient(lambda w: loss(w, x.detach()), weight)
    spoiled = x.detach().masked_fill((target == -100).unsqueeze(1), torch.nan)
    actual = weight_gradient(lambda w: loss(w, spoiled), weight)
    torch.testing.assert_close(actual, expected)
