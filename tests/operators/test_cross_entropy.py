import itertools

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from numerics import DTYPES, assert_as_accurate_as_torch

# few classes with a partial last block of rows, one block a row, a walked row
SHAPES = [(300, 10), (5, 1000), (2, 50257)]
OPTIONS = [
    {"reduction": reduction, "label_smoothing": smoothing}
    for reduction, smoothing in itertools.product(["mean", "sum", "none"], [0.0, 0.1])
]


def some_targets(shape, n_classes, device):
    target = torch.randint(n_classes, shape, device=device)
    target.flatten()[::4] = -100
    return target


def value_and_gradient(loss_function, logits, target, weight=None, **options):
    logits = logits.detach().requires_grad_()
    weight = None if weight is None else weight.to(logits.dtype)
    loss = loss_function(logits, target, weight, **options)
    (dlogits,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), dlogits


def assert_agrees_with_torch(logits, target, weight=None, **options):
    actual = value_and_gradient(torch_softmax.cross_entropy, logits, target, weight, **options)
    baseline = value_and_gradient(F.cross_entropy, logits, target, weight, **options)
    exact = value_and_gradient(F.cross_entropy, logits.double(), target, weight, **options)
    for ours, theirs, truth in zip(actual, baseline, exact, strict=True):
        assert_as_accurate_as_torch(ours, theirs, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_as_accurate_as_torch(shape, options, weighted, dtype, device):
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    target = some_targets(shape[:1], shape[1], device)
    weight = torch.rand(shape[1], device=device) + 0.5 if weighted else None
    assert_agrees_with_torch(logits, target, weight, **options)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 7, 5), (2, 7, 3, 4), (2, 7, 1, 2, 3)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy_takes_every_shape(shape, options, device):
    logits = torch.randn(shape, device=device)
    target = torch.randint(7, shape[:1][len(shape) == 1 :] + shape[2:], device=device)
    assert_agrees_with_torch(logits, target, torch.rand(7, device=device), **options)


def test_cross_entropy_takes_every_layout(device):
    images = torch.randn(3, 7, 4, 6, device=device)
    tokens = torch.randn(3, 9, 7, device=device)
    for logits in (
        images.to(memory_format=torch.channels_last),
        images[:, :, 1:],
        images[:, 1:6],
        images[..., ::2],
        images.transpose(2, 3),
        tokens[:, :-1].transpose(1, 2),
        images[:1].expand(4, -1, -1, -1),
    ):
        target = some_targets(logits[:, 0].shape, logits.shape[1], device)
        assert_agrees_with_torch(logits, target, label_smoothing=0.1)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_cross_entropy_takes_every_integer_target(dtype, device):
    logits = torch.randn(5, 10, device=device)
    target = torch.tensor([1, 9, 0, 3, 3], device=device)
    expected = F.cross_entropy(logits, target)
    # -100 is 156 in uint8, and 2**40 is 0 in int32: an ignore_index may not wrap
    for ignore_index in (-100, 2**40, -253):
        loss = torch_softmax.cross_entropy(logits, target.to(dtype), ignore_index=ignore_index)
        torch.testing.assert_close(loss, expected)


def test_cross_entropy_ignores_a_class_by_its_index(device):
    logits = torch.randn(8, 4, device=device)
    target = torch.arange(8, device=device) % 4
    assert_agrees_with_torch(logits, target, ignore_index=2)
    assert_agrees_with_torch(logits, target, torch.rand(4, device=device), ignore_index=2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy_with_all_rows_ignored_is_as_in_torch(options, device):
    logits = torch.randn(3, 4, device=device)
    assert_agrees_with_torch(logits, torch.full((3,), -100, device=device), **options)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy_of_an_empty_batch_is_as_in_torch(shape, options, device):
    logits = torch.randn(shape, device=device)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long, device=device)
    assert_agrees_with_torch(logits, target, **options)


@pytest.mark.parametrize("n_cols", [10, 1000, 50257])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_infinities_is_as_in_torch(n_cols, label_smoothing, device):
    inf = torch.inf
    logits = torch.randn(7, n_cols, device=device)
    logits[0, : n_cols // 2] = -inf  # whole leading blocks where a row is walked
    logits[1] = -inf
    logits[2, 1:] = -inf
    logits[3, 3] = inf
    logits[4, 3] = torch.nan
    logits[5] -= 10_000
    logits[6, -1] = -inf
    target = torch.full((7,), n_cols - 1, device=device)
    assert_agrees_with_torch(logits, target, reduction="none", label_smoothing=label_smoothing)


def test_cross_entropy_keeps_small_losses_of_large_logits(device):
    # the log-sum-exp near 10,000, rounded to float32, would leave three correct digits
    logits = 10_000 + torch.randn(20, 10, device=device)
    assert_agrees_with_torch(logits, torch.arange(20, device=device) % 10, reduction="none")


def test_cross_entropy_gives_an_ignored_row_no_gradient_even_from_nan(device):
    logits = torch.randn(3, 10, device=device)
    logits[1] = torch.nan
    logits.requires_grad_()
    loss = torch_softmax.cross_entropy(logits, torch.tensor([4, -100, 5], device=device))
    loss.backward()
    assert loss.isfinite()
    assert torch.equal(logits.grad[1], torch.zeros(10, device=device))


def test_cross_entropy_adds_up_half_precision_losses_in_float32(device):
    n_rows = 70_000
    target = torch.zeros(n_rows, dtype=torch.long, device=device)
    for dtype in (torch.float16, torch.bfloat16):
        loss = torch_softmax.cross_entropy(
            torch.zeros(n_rows, 10, dtype=dtype, device=device), target
        )
        torch.testing.assert_close(loss, torch.tensor(10.0).log().to(dtype).to(device))


def test_cross_entropy_under_autocast_is_float32(device):
    logits = torch.randn(3, 4, device=device, dtype=torch.bfloat16)
    target = torch.tensor([0, 1, 2], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        loss = torch_softmax.cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target))


def test_cross_entropy_leaves_its_input_alone(device):
    logits = torch.randn(5, 10, device=device, requires_grad=True)
    target = torch.tensor([0, 1, -100, 3, 9], device=device)
    before = logits.detach().clone()
    torch_softmax.cross_entropy(logits, target, label_smoothing=0.1).backward()
    with torch.no_grad():
        torch_softmax.cross_entropy(logits, target)
    assert torch.equal(logits.detach(), before)
    assert target[2] == -100


def test_cross_entropy_backward_twice_gives_the_same_gradient_twice(device):
    logits = torch.randn(5, 10, device=device, requires_grad=True)
    loss = torch_softmax.cross_entropy(logits, torch.arange(5, device=device))
    first, second = (torch.autograd.grad(3 * loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_cross_entropy_gives_the_same_bits_every_run(device):
    logits = torch.randn(500, 10, device=device)
    target = some_targets((500,), 10, device)
    torch.use_deterministic_algorithms(True)
    runs = [value_and_gradient(torch_softmax.cross_entropy, logits, target) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("target", [[0, 10], [-1, 3]])
def test_cross_entropy_refuses_a_target_that_is_no_class(target):
    with pytest.raises(IndexError, match=r"target in \[0, 10\) or equal to ignore_index, got"):
        torch_softmax.cross_entropy(torch.randn(2, 10), torch.tensor(target))


@pytest.mark.parametrize("bad", [10, -1, 2**40, -(2**40)])
def test_cross_entropy_kernels_make_a_row_without_a_class_nan(bad, kernel_device):
    logits = torch.randn(3, 10, device=kernel_device, requires_grad=True)
    target = torch.tensor([1, bad, 2], device=kernel_device)
    weight = torch.rand(10, device=kernel_device)
    for options in ({}, {"weight": weight, "label_smoothing": 0.1}):
        loss = torch_softmax.cross_entropy(logits, target, reduction="none", **options)
        (gradient,) = torch.autograd.grad(loss[[0, 2]].sum() + loss[1], logits)
        assert loss.isnan().tolist() == [False, True, False]
        assert gradient.isnan().all(1).tolist() == [False, True, False]
        assert gradient[[0, 2]].isfinite().all()


def test_cross_entropy_differentiates_the_class_weights(device):
    logits = torch.randn(6, 4, device=device, dtype=torch.double)
    target = some_targets((6,), 4, device)
    weight = torch.rand(4, device=device, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        torch_softmax.cross_entropy(logits, target, weight, label_smoothing=0.2), weight
    )
    log_probabilities = F.log_softmax(logits, 1)
    counted = target != -100
    row_weight = weight[target.clamp(min=0)] * counted
    nll = -log_probabilities.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    smooth = -(log_probabilities * weight).sum(1) * counted
    loss = (0.8 * row_weight * nll + 0.05 * smooth).sum() / row_weight.sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, weight)[0])


def test_cross_entropy_module_computes_the_function():
    weight = torch.rand(4)
    module = torch_softmax.CrossEntropyLoss(
        weight, ignore_index=1, reduction="sum", label_smoothing=0.1
    )
    logits, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 3])
    expected = torch_softmax.cross_entropy(
        logits, target, weight, ignore_index=1, reduction="sum", label_smoothing=0.1
    )
    assert torch.equal(module(logits, target), expected)
    assert torch.equal(module.state_dict()["weight"], weight)
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    assert repr(module) == (
        "CrossEntropyLoss(ignore_index=1, reduction='sum', label_smoothing=0.1, "
        "z_loss=0.0, softcap=None, logit_scale=1.0, inplace=False)"
    )


LOGITS, TARGET = torch.zeros(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], TARGET), {}, TypeError, "input to be a Tensor, got list"),
        ((LOGITS, [0, 1, 2]), {}, TypeError, "target to be a Tensor, got list"),
        ((LOGITS.long(), TARGET), {}, TypeError, "input to be float16, .* got torch.int64"),
        ((LOGITS, TARGET.bool()), {}, TypeError, "target to be class indices .* got torch.bool"),
        ((LOGITS, LOGITS[:2]), {}, ValueError, r"\(3, 4\) if it holds probabilities"),
        ((LOGITS, LOGITS), {"ignore_index": 0}, ValueError, "target to be class indices"),
        ((LOGITS[0, 0], TARGET), {}, ValueError, "input to have a class axis, got a scalar"),
        ((LOGITS, TARGET[:2]), {}, ValueError, r"target of shape \(3,\) .* got \(2,\)"),
        ((LOGITS[0], TARGET[:1]), {}, ValueError, r"target of shape \(\) .* got \(1,\)"),
        ((LOGITS, TARGET.to("meta")), {}, ValueError, "target on cpu beside input, got meta"),
        ((LOGITS, TARGET, torch.ones(3)), {}, ValueError, r"weight of shape \(4,\)"),
        ((LOGITS, TARGET, torch.ones(4).long()), {}, TypeError, "weight to be float16"),
        ((LOGITS, TARGET, torch.ones(4, device="meta")), {}, ValueError, "weight on cpu"),
        ((LOGITS, TARGET), {"ignore_index": 1.5}, TypeError, "ignore_index of type int, got 1.5"),
        ((LOGITS, TARGET), {"ignore_index": 2**63}, ValueError, f"int64, got {2**63}"),
        ((LOGITS, TARGET), {"reduction": "max"}, ValueError, "reduction to be .* got 'max'"),
        ((LOGITS, TARGET), {"label_smoothing": 1.5}, ValueError, r"label_smoothing in \[0, 1\]"),
        ((LOGITS, TARGET), {"label_smoothing": -0.1}, ValueError, r"label_smoothing in \[0, 1\]"),
        ((LOGITS, TARGET), {"label_smoothing": float("nan")}, ValueError, "got nan"),
        ((LOGITS, TARGET), {"label_smoothing": "a"}, TypeError, "label_smoothing of type float"),
        ((LOGITS, TARGET), {"z_loss": -1.0}, ValueError, "z_loss of at least 0, got -1.0"),
        ((LOGITS, TARGET), {"softcap": 0.0}, ValueError, "softcap above 0 or None, got 0.0"),
        ((LOGITS, TARGET), {"logit_scale": torch.ones(1)}, TypeError, "logit_scale of type float"),
        ((LOGITS, TARGET), {"logit_scale": float("inf")}, ValueError, "logit_scale to be finite"),
    ],
)
def test_cross_entropy_names_the_bad_argument(arguments, options, error, message):
    with pytest.raises(error, match=f"^cross_entropy needs .*{message}"):
        torch_softmax.cross_entropy(*arguments, **options)


def test_cross_entropy_scales_a_float16_gradient_before_rounding_it(device):
    logits = (4 * torch.randn(8, 1000, device=device)).half().requires_grad_()
    target = torch.randint(1000, (8,), device=device)
    loss = torch_softmax.cross_entropy(logits, target)
    (actual,) = torch.autograd.grad(2**14 * loss, logits)
    exact = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(2**14 * F.cross_entropy(exact, target), exact)
    torch.testing.assert_close(actual, expected.half())
    # what no scale brings back once it is rounded
    assert (expected / 2**14).half().eq(0).any()
