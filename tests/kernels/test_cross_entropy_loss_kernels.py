"""The loss kernels, launched directly: loss and gradient against float64."""

import pytest
import torch
import torch.nn.functional as F

from numerics import assert_as_accurate_as_torch
from pairwise import pairwise
from torch_softmax import _launch, reference
from torch_softmax._launch import clusters

# logits with the class axis last, and the schedule of their rows
SHAPES = {
    "packed": (130, 10),
    "several rows to a program": (7, 100),
    "a row to a program": (2, 4096),
    "unaligned rows": (3, 1001),
    "longer than a tile": (2, 20000),
    "unaligned and longer than a tile": (2, 20011),
    "in a cluster": (2, 65536),
    "unaligned and in a cluster": (2, 50257),
}
# (batch, classes, height, width), the class axis moved to the end
STRIDED_SHAPES = {
    "class-strided": (2, 19, 3, 5),
    "class-strided and longer than a tile": (1, 300, 3, 5),
}
EACH_SCHEDULE = pytest.mark.parametrize(
    "shape", ["packed", "a row to a program", "longer than a tile", "in a cluster"]
)
SHAPE = pytest.mark.parametrize("shape", [*SHAPES, *STRIDED_SHAPES])

PLAIN = {
    "weighted": False,
    "denominator": None,
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "softcap": None,
    "logit_scale": 1.0,
}
# every option with and without another
OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum", "weighted": True},
    "denominator": {"denominator": 7.0, "label_smoothing": 0.1},
    "weighted and smoothed": {"weighted": True, "label_smoothing": 0.1},
    "z-loss and scale": {"z_loss": 1e-2, "logit_scale": 0.5, "reduction": "sum"},
    "softcap": {"softcap": 3.0, "logit_scale": -1.5, "ignore_index": 0},
    "everything": {
        "weighted": True,
        "denominator": 3.0,
        "label_smoothing": 0.3,
        "z_loss": 1e-2,
        "softcap": 2.0,
        "logit_scale": 0.7,
    },
}


@pytest.fixture(autouse=True)
def cluster_schedules(monkeypatch):
    """The interpreter takes the schedules of a GPU with clusters; a GPU takes its own."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(clusters, "enabled", True)


def make_logits(shape, device, dtype=torch.float32):
    if shape in STRIDED_SHAPES:
        return torch.randn(STRIDED_SHAPES[shape]).to(device, dtype).movedim(1, -1)
    return torch.randn(SHAPES[shape]).to(device, dtype)


def class_indices(logits, ignore_index=-100):
    """A class of each row; every third row is ignored."""
    n_rows = logits.shape[:-1].numel()
    index = (7 * torch.arange(n_rows)) % logits.shape[-1]
    index[1::3] = ignore_index
    return index.view(logits.shape[:-1]).to(logits.device)


def probabilities(logits, ignore_index=-100):
    """Probabilities, to which ``ignore_index`` means nothing."""
    return torch.randn(logits.shape, device=logits.device).softmax(-1).to(logits.dtype)


def class_weight(logits):
    return torch.linspace(0.0, 2.0, logits.shape[-1], device=logits.device).add(0.25)


def composed(logits, target, weight, options):
    """The loss in PyTorch's own functions."""
    x = logits * options["logit_scale"]
    if options["softcap"] is not None:
        x = options["softcap"] * torch.tanh(x / options["softcap"])
    n_cols = x.shape[-1]
    weight = None if weight is None else weight.to(x.dtype)
    smoothing = options["label_smoothing"]
    if target.is_floating_point():
        is_counted = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        flat_target, ignore_index = target.reshape(-1, n_cols).to(x.dtype), -100
        denominator = is_counted.sum()
    else:
        is_counted = target != options["ignore_index"]
        flat_target, ignore_index = target.reshape(-1), options["ignore_index"]
        ones = torch.ones(n_cols, dtype=x.dtype, device=x.device)
        counted = target[is_counted]
        denominator = (ones if weight is None else weight)[counted].sum()
    total = F.cross_entropy(
        x.reshape(-1, n_cols), flat_target, weight, None, ignore_index, None, "sum", smoothing
    )
    total = total + options["z_loss"] * x.logsumexp(-1)[is_counted].square().sum()
    if options["denominator"] is not None:
        denominator = options["denominator"]
    return total if options["reduction"] == "sum" else total / denominator


def launch(logits, target, weight, options, with_gradient=True, dloss=None):
    denominator = options["denominator"]
    *tensors, settings = arguments(logits, target, weight, options, denominator)
    return _launch.launch_cross_entropy_loss(
        *tensors, logits.dtype, with_gradient, *settings, dloss=dloss
    )


def arguments(logits, target, weight, options, denominator):
    if denominator is not None:
        denominator = torch.tensor(denominator, device=logits.device)
    names = ("ignore_index", "reduction", "label_smoothing", "z_loss", "softcap", "logit_scale")
    return logits, target, weight, denominator, [options[name] for name in names]


def value_and_gradient(logits, *args):
    logits = logits.detach().requires_grad_()
    loss = composed(logits, *args)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def assert_accurate(actual, logits, target, weight, options):
    exact_target = target.double() if target.is_floating_point() else target
    exact_weight = None if weight is None else weight.double()
    baselines = value_and_gradient(logits, target, weight, options)
    exacts = value_and_gradient(logits.double(), exact_target, exact_weight, options)
    for value, baseline, exact in zip(actual, baselines, exacts, strict=True):
        assert_as_accurate_as_torch(value, baseline, exact)


# each option with each shape, and each of them with either target
@pytest.mark.parametrize(
    ("shape", "option", "make_target"),
    pairwise([*SHAPES, *STRIDED_SHAPES], list(OPTIONS), [class_indices, probabilities]),
)
def test_cross_entropy_loss_and_gradient_are_accurate(kernel_device, shape, option, make_target):
    options = PLAIN | OPTIONS[option]
    logits = make_logits(shape, kernel_device)
    target = make_target(logits, options["ignore_index"])
    weight = class_weight(logits) if options["weighted"] else None

    actual = launch(logits, target, weight, options)

    assert_accurate(actual, logits, target, weight, options)


@SHAPE
@pytest.mark.parametrize("make_target", [class_indices, probabilities])
def test_cross_entropy_loss_inplace_is_the_same(kernel_device, shape, make_target):
    options = PLAIN | OPTIONS["everything"]
    logits = make_logits(shape, kernel_device)
    target, weight = make_target(logits), class_weight(logits)
    loss, dlogits = launch(logits, target, weight, options)

    *tensors, settings = arguments(logits, target, weight, options, options["denominator"])
    inplace = _launch.launch_cross_entropy_loss_inplace(*tensors, logits.dtype, *settings)

    torch.testing.assert_close((inplace, logits), (loss, dlogits), rtol=0, atol=0)


@EACH_SCHEDULE
@pytest.mark.parametrize("make_target", [class_indices, probabilities])
def test_cross_entropy_loss_multiplies_the_gradient_by_dloss(kernel_device, shape, make_target):
    options = PLAIN | OPTIONS["everything"]
    logits = make_logits(shape, kernel_device)
    target, weight = make_target(logits), class_weight(logits)
    loss, dlogits = launch(logits, target, weight, options)

    factor = torch.tensor(-4.0, dtype=torch.float64, device=kernel_device)
    actual = launch(logits, target, weight, options, dloss=factor)

    torch.testing.assert_close(actual, (loss, -4 * dlogits), rtol=0, atol=0)


@EACH_SCHEDULE
@pytest.mark.parametrize("make_target", [class_indices, probabilities])
@pytest.mark.parametrize("expanded", [False, True])
def test_cross_entropy_loss_of_each_row_has_a_gradient_with_its_dloss(
    kernel_device, shape, make_target, expanded
):
    options = PLAIN | OPTIONS["everything"] | {"reduction": "none", "denominator": None}
    logits = make_logits(shape, kernel_device)
    target, weight = make_target(logits), class_weight(logits)
    batch = logits.shape[:-1]
    dloss = (torch.arange(batch.numel(), device=kernel_device) % 7 - 3.5).view(batch)
    dloss = dloss.flatten()[-1].expand(batch) if expanded else dloss
    *tensors, settings = arguments(logits.double(), target, weight.double(), options, None)
    exact = reference.cross_entropy_loss(*tensors, torch.float64, True, *settings, dloss=dloss)

    loss, dlogits = launch(logits, target, weight, options, dloss=dloss)

    assert loss.shape == batch
    torch.testing.assert_close((loss, dlogits), (exact[0].float(), exact[1].float()))


@EACH_SCHEDULE
def test_cross_entropy_loss_of_a_row_with_dloss_0_has_no_gradient(kernel_device, shape):
    options = PLAIN | {"reduction": "none"}
    logits = make_logits(shape, kernel_device)
    dloss = torch.ones(logits.shape[:-1], device=kernel_device)
    dloss.view(-1)[::2] = 0
    logits[dloss == 0] = torch.nan
    _, dlogits = launch(logits, class_indices(logits), None, options, dloss=dloss)
    assert (dlogits[dloss == 0] == 0).all() and not dlogits.isnan().any()


@SHAPE
@pytest.mark.parametrize("make_target", [class_indices, probabilities])
def test_cross_entropy_loss_without_gradient_is_accurate(kernel_device, shape, make_target):
    options = PLAIN | OPTIONS["everything"]
    logits = make_logits(shape, kernel_device)
    target, weight = make_target(logits), class_weight(logits)

    loss, dlogits = launch(logits, target, weight, options, with_gradient=False)

    assert dlogits.shape == (0,)
    exact = composed(logits.double(), target, weight.double(), options)
    assert_as_accurate_as_torch(loss, composed(logits, target, weight, options), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", ["packed", "a row to a program", "unaligned rows"])
@pytest.mark.parametrize("make_target", [class_indices, probabilities])
def test_cross_entropy_loss_serves_other_dtypes(kernel_device, dtype, shape, make_target):
    options = PLAIN | {"label_smoothing": 0.1}
    logits = make_logits(shape, kernel_device, dtype)
    target, weight = make_target(logits), class_weight(logits).to(dtype)

    actual = launch(logits, target, weight, options)

    assert_accurate(actual, logits, target, weight, options)


@EACH_SCHEDULE
def test_cross_entropy_loss_takes_any_strides_of_the_target(kernel_device, shape):
    logits = make_logits(shape, kernel_device)
    options = PLAIN | {"reduction": "sum"}
    expanded = probabilities(logits)[:1].expand(logits.shape)
    indices = class_indices(logits).repeat_interleave(2)[::2].to(torch.int32)

    assert_accurate(launch(logits, expanded, None, options), logits, expanded, None, options)
    actual = launch(logits, indices, None, options)
    assert_accurate(actual, logits, indices.long(), None, options)


@pytest.mark.parametrize("denominator", [torch.tensor(4), torch.tensor(4.0).double()])
def test_cross_entropy_loss_takes_a_denominator_of_any_dtype(kernel_device, denominator):
    logits = make_logits("packed", kernel_device)
    arguments = (logits, class_indices(logits), None)
    rest = (torch.float32, True)

    actual = _launch.launch_cross_entropy_loss(*arguments, denominator.to(kernel_device), *rest)

    expected = _launch.launch_cross_entropy_loss(
        *arguments, torch.tensor(4.0, device=kernel_device), *rest
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@EACH_SCHEDULE
def test_cross_entropy_loss_of_an_ignored_row_is_0_whatever_its_logits(kernel_device, shape):
    logits = make_logits(shape, kernel_device)
    target = torch.zeros(len(logits), dtype=torch.int64, device=kernel_device)
    clean = launch(logits, target.index_fill(0, torch.tensor(1), -100), None, PLAIN)
    logits[1] = float("nan")
    target[1] = -100

    loss, dlogits = launch(
        logits, target, None, PLAIN | OPTIONS["softcap"] | {"ignore_index": -100}
    )
    plain_loss, plain_dlogits = launch(logits, target, None, PLAIN)

    assert loss.isfinite() and (dlogits[1] == 0).all() and dlogits.isfinite().all()
    torch.testing.assert_close((plain_loss, plain_dlogits), clean, rtol=0, atol=0)


@EACH_SCHEDULE
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_loss_of_no_counted_row_has_no_gradient(kernel_device, shape, reduction):
    logits = make_logits(shape, kernel_device)
    target = torch.full((len(logits),), -100, device=kernel_device)

    loss, dlogits = launch(logits, target, None, PLAIN | {"reduction": reduction})

    assert loss.isnan() if reduction == "mean" else loss == 0
    assert (dlogits == 0).all()


@EACH_SCHEDULE
@pytest.mark.parametrize("invalid", [-1, 2**40])
def test_cross_entropy_loss_of_an_invalid_target_is_nan(kernel_device, shape, invalid):
    logits = make_logits(shape, kernel_device)
    target = torch.zeros(len(logits), dtype=torch.int64, device=kernel_device)
    target[1] = invalid

    loss, dlogits = launch(logits, target, class_weight(logits), PLAIN)

    assert loss.isnan()
    assert dlogits[1].isnan().all()
    assert dlogits[0].isfinite().all()


@EACH_SCHEDULE
def test_cross_entropy_loss_of_probability_0_at_infinity_is_finite(kernel_device, shape):
    logits = make_logits(shape, kernel_device)
    target = probabilities(logits)
    target[:, 3] = 0.0
    without = torch.cat([logits[:, :3], logits[:, 4:]], 1)
    expected = composed(without, torch.cat([target[:, :3], target[:, 4:]], 1), None, PLAIN)
    logits[:, 3] = -float("inf")

    loss, dlogits = launch(logits, target, None, PLAIN)

    torch.testing.assert_close(loss, expected)
    assert dlogits.isfinite().all()


@pytest.mark.parametrize("make_target", [class_indices, probabilities])
def test_cross_entropy_loss_of_one_column_is_0(kernel_device, make_target):
    logits = torch.randn(5, 1, device=kernel_device)

    loss, dlogits = launch(logits, make_target(logits), None, PLAIN)

    assert loss == 0 and (dlogits == 0).all()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_cross_entropy_loss_of_no_rows(kernel_device, shape):
    logits = torch.empty(shape, device=kernel_device)
    target = torch.empty(shape[:-1], dtype=torch.int64, device=kernel_device)

    mean, dlogits = launch(logits, target, None, PLAIN)
    total, _ = launch(logits, target, None, PLAIN | {"reduction": "sum"})
    divided, _ = launch(logits, target, None, PLAIN | {"denominator": 2.0})

    assert mean.isnan() and total == 0 and divided == 0
    assert dlogits.shape == shape
