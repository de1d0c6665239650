"""Values and gradients of linear cross-entropy, in one chunk and in many."""

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from linear_heads import linear_definition, loss_and_gradients, random_head
from numerics import DTYPES, assert_agrees

each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
OPTIONS = [
    {},
    {"label_smoothing": 0.1, "z_loss": 0.01},
    {"softcap": 3.0, "logit_scale": 0.7},
]


def ours(input, linear_weight, target, bias=None, **options):
    return torch_softmax.linear_cross_entropy(
        input, linear_weight, target, linear_bias=bias, **options
    )


def in_chunks(size):
    return lambda *args, **options: ours(*args, chunk_size=size, **options)


def theirs(input, linear_weight, target, bias=None, **options):
    return linear_definition(input, linear_weight, target, linear_bias=bias, **options)


@each_reduction
@pytest.mark.parametrize("options", OPTIONS)
# one chunk, chunks of one size, a last chunk that is smaller, a row at a time
@pytest.mark.parametrize("size", [None, 3, 4, 1])
def test_linear_cross_entropy_has_the_definitions_value_and_gradients(
    size, options, reduction, device
):
    head = random_head(device=device, dtype=torch.double)
    assert_agrees(in_chunks(size), theirs, *head, reduction=reduction, **options)


@each_reduction
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_cross_entropy_serves_every_dtype(dtype, reduction, device):
    head = random_head(device=device, dtype=dtype)
    assert_agrees(in_chunks(4), theirs, *head, reduction=reduction)


@each_reduction
@pytest.mark.parametrize("batch", [(), (6,), (2, 3)])
@pytest.mark.parametrize("is_soft", [False, True])
def test_linear_cross_entropy_takes_any_batch(is_soft, batch, reduction, device):
    x = torch.randn(*batch, 5, dtype=torch.double, device=device, requires_grad=True)
    linear_weight = torch.randn(7, 5, dtype=torch.double, device=device, requires_grad=True)
    target = torch.randint(7, batch, device=device)
    if is_soft:
        target = torch.softmax(torch.randn(*batch, 7, dtype=torch.double, device=device), -1)
    weight = torch.rand(7, dtype=torch.double, device=device)
    assert_agrees(
        in_chunks(4), theirs, x, linear_weight, target, weight=weight, reduction=reduction
    )


@each_reduction
@pytest.mark.parametrize("is_soft", [False, True])
def test_linear_cross_entropy_takes_several_losses_of_a_row(is_soft, reduction, device):
    x = torch.randn(2, 3, 5, dtype=torch.double, device=device, requires_grad=True)
    linear_weight = torch.randn(7, 2, 3, 5, dtype=torch.double, device=device, requires_grad=True)
    bias = torch.randn(7, 2, 3, dtype=torch.double, device=device, requires_grad=True)
    target = torch.randint(7, (2, 3, 2, 3), device=device)
    target[0, 0] = target[1, 2, 0] = -100
    if is_soft:
        target = torch.softmax(torch.randn(2, 3, 7, 2, 3, dtype=torch.double, device=device), 2)
    args = (x, linear_weight, target, bias)
    assert_agrees(in_chunks(4), theirs, *args, reduction=reduction)


@each_reduction
def test_linear_cross_entropy_of_no_counted_row(reduction, device):
    x, linear_weight, target, bias = random_head(device=device)
    for no_target in (target[:0], torch.full_like(target, -100)):
        head = (x[: len(no_target)], linear_weight, no_target, bias)
        loss, *gradients = loss_and_gradients(*head, reduction=reduction)
        torch.testing.assert_close(
            loss, theirs(*head, reduction=reduction).detach(), equal_nan=True
        )
        assert not any(gradient.any() for gradient in gradients)


@each_reduction
@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_linear_cross_entropy_trains_any_part_of_a_frozen_head(wanted, reduction, device):
    x, linear_weight, target, bias = random_head(device=device)
    every = loss_and_gradients(x, linear_weight, target, bias, reduction=reduction)
    names = ("x", "weight", "bias")
    parts = dict(zip(names, (x, linear_weight, bias), strict=True))
    parts = {name: y.detach().requires_grad_(name == wanted) for name, y in parts.items()}
    head = (parts["x"], parts["weight"], target, parts["bias"])
    loss, gradient = loss_and_gradients(*head, reduction=reduction, chunk_size=4)
    torch.testing.assert_close(loss, every[0])
    torch.testing.assert_close(gradient, every[1 + names.index(wanted)])


def test_linear_cross_entropy_divides_by_a_given_denominator(device):
    head = random_head(device=device)
    total = loss_and_gradients(*head, reduction="sum")
    for denominator in (4, torch.tensor(4, device=device), torch.tensor(4.0, device=device)):
        mean = loss_and_gradients(*head, denominator=denominator, chunk_size=3)
        torch.testing.assert_close([4 * y for y in mean], list(total))


def test_linear_cross_entropy_differentiates_the_denominator(device):
    head = random_head(device=device)
    denominator = torch.tensor(4.0, device=device, requires_grad=True)
    loss = ours(*head, denominator=denominator)
    (gradient,) = torch.autograd.grad(loss, denominator)
    torch.testing.assert_close(gradient, -loss.detach() / 4)


def test_linear_cross_entropy_differentiates_target_probabilities_and_class_weights(device):
    x, linear_weight, _, bias = random_head(device=device)
    target = torch.softmax(torch.randn(11, 7, device=device), -1).requires_grad_()
    weight = torch.rand(7, device=device, requires_grad=True)
    loss = ours(x, linear_weight, target, bias, weight=weight, chunk_size=4)
    logits = F.linear(x, linear_weight, bias)
    expected = torch_softmax.cross_entropy(logits, target, weight)
    inputs = (x, linear_weight, bias, target, weight)
    actual = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(actual, torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_reduction
def test_linear_cross_entropy_keeps_float32_logits_of_narrower_operands(dtype, reduction):
    head = random_head(n_features=64, dtype=dtype)
    options = {"reduction": reduction, "logits_dtype": torch.float32, "chunk_size": 4}
    loss, *gradients = loss_and_gradients(*head, **options)
    assert loss.dtype == torch.float32
    x, linear_weight, target, bias = head
    exact = theirs(
        *(y.double() for y in (x, linear_weight)), target, bias.double(), reduction=reduction
    )
    torch.testing.assert_close(loss, exact.detach().float())
    assert [y.dtype for y in gradients] == [dtype] * 3


def test_linear_cross_entropy_obeys_autocast(device):
    head = random_head(n_features=64, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss, *gradients = loss_and_gradients(*head, chunk_size=4)
        x, linear_weight, target, bias = head
        logits = F.linear(x, linear_weight, bias)
    assert loss.dtype == torch.float32 and logits.dtype == torch.bfloat16
    assert [y.dtype for y in gradients] == [torch.float32] * 3
    torch.testing.assert_close(loss, torch_softmax.cross_entropy(logits.float(), target).detach())


def test_linear_cross_entropy_rounds_the_weights_gradient_of_many_chunks_once():
    x, linear_weight, target, _ = random_head(1024, 64, 128)
    x, linear_weight = (y.detach().bfloat16().requires_grad_() for y in (x, linear_weight))
    wide = [y.detach().double().requires_grad_() for y in (x, linear_weight)]
    _, _, exact = loss_and_gradients(*wide, target, None)

    def error(size):
        _, _, gradient = loss_and_gradients(x, linear_weight, target, None, chunk_size=size)
        return ((gradient.double() - exact).norm() / exact.norm()).item()

    assert error(4) <= 1.2 * error(1024)


def test_linear_cross_entropy_names_a_target_that_is_no_class():
    x, linear_weight, target, bias = random_head()
    target[0] = 7
    for reduction in ("mean", "none"):
        with pytest.raises(IndexError):
            ours(x, linear_weight, target, bias, reduction=reduction)


def test_linear_cross_entropy_counts_rows_of_any_integer_target(device):
    x, linear_weight, target, bias = random_head(device=device)
    target = target.masked_fill(target == -100, 3)
    expected = ours(x, linear_weight, target, bias, ignore_index=3)
    for dtype in (torch.uint8, torch.int8, torch.int32):
        actual = ours(x, linear_weight, target.to(dtype), bias, ignore_index=3)
        torch.testing.assert_close(actual, expected)
