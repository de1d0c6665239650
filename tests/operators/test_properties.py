"""What holds of softmax and cross-entropy whatever the input, on inputs that Hypothesis draws."""

import math

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import torch_softmax
from numerics import DTYPES, assert_as_accurate_as_torch
from torch_softmax._ops import registration

property_of = settings(
    # the same examples in every run, and none stored beside the code
    derandomize=True,
    database=None,
    max_examples=25,
    # an example is a few numbers, with nothing in it to shrink
    phases=[Phase.generate],
    # the first example compiles
    deadline=None,
    # a test's device is that of all its examples
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# an interpreted kernel takes a millisecond for each of a tensor's tiles
slow_property_of = settings(property_of, max_examples=10)
# around the borders of a tile's rows and columns, and of what a block holds at all
BORDERS = [(1, 1), (129, 1), (1, 2), (127, 10), (128, 10), (129, 10), (63, 32), (65, 33)]
BORDERS += [(3, 1023), (2, 1024), (3, 1025), (1, 2048), (2, 2049), (1, 32_768), (2, 32_769)]
SHAPES = st.sampled_from(BORDERS) | st.tuples(st.integers(1, 40), st.integers(1, 70))
# the gradient of one class is 0, which leaves no size to measure a rounding by
SHAPES_WITH_GRADIENT = SHAPES.filter(lambda shape: shape[1] > 1)
# (samples, classes, positions); the classes of the last ones are walked, in blocks
IMAGES = st.sampled_from([(2, 3, 5), (1, 10, 33), (3, 1, 4), (2, 17, 1), (1, 1030, 5)])
WIDE = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**31)
# sure rows and unsure ones
SPREADS = st.sampled_from([0.1, 3.0, 50.0])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "label_smoothing": st.sampled_from([0.1, 0.5, 1.0]),
        "z_loss": st.sampled_from([1e-4, 0.3]),
        "softcap": st.sampled_from([0.7, 30.0]),
        "logit_scale": st.sampled_from([-0.5, 3.0]),
    },
)


class Rows:
    """Logits, classes, probabilities and class weights that one seed makes."""

    def __init__(self, shape, seed, spread=3.0, dtype=torch.float64, device="cpu"):
        random = torch.Generator().manual_seed(seed)
        n_classes = shape[1]
        logits = spread * torch.randn(shape, generator=random)
        self.logits = logits.to(device, dtype)
        rows = logits[:, 0].shape
        self.target = torch.randint(n_classes, rows, generator=random).to(device)
        ignored = torch.rand(rows, generator=random) < 0.3
        ignored.flatten()[0] = False  # the mean of no row is NaN
        self.ignoring = self.target.masked_fill(ignored.to(device), -100)
        self.probabilities = torch.rand(shape, generator=random).softmax(1).to(device, dtype)
        self.weight = (torch.rand(n_classes, generator=random) + 0.5).to(device, dtype)


def value_and_gradient(function, x, *args, **options):
    x = x.detach().requires_grad_()
    y = function(x, *args, **options)
    dy = torch.arange(1, 1 + y.numel(), device=y.device).view(y.shape).cos().to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, x, dy)


def definition(
    logits, target, weight=None, *, z_loss=0.0, softcap=None, logit_scale=1.0, reduction, **options
):
    """Cross-entropy with all its options, of PyTorch's operators."""
    x = logits * logit_scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    loss = F.cross_entropy(x, target, weight, reduction="none", **options)
    soft = target.is_floating_point()
    counted = torch.ones_like(loss) if soft else (target != -100).to(loss.dtype)
    loss = loss + z_loss * x.logsumexp(1).square() * counted
    if weight is not None and not soft:
        counted = counted * weight[target.clamp(min=0)]
    total = loss.sum()
    return {"none": loss, "sum": total, "mean": total / counted.sum()}[reduction]


@property_of
@given(SHAPES, SEEDS, SPREADS, st.sampled_from(DTYPES))
def test_softmax_of_a_row_is_a_distribution(device, shape, seed, spread, dtype):
    x = Rows(shape, seed, spread, dtype, device).logits
    y = torch_softmax.softmax(x, 1)
    assert (y >= 0).all()
    total = y.double().sum(1).to(dtype)
    torch.testing.assert_close(total, torch.ones_like(total))


@property_of
@given(SHAPES, SEEDS, SPREADS, WIDE)
def test_softmax_is_the_exponential_of_log_softmax(device, shape, seed, spread, dtype):
    x = Rows(shape, seed, spread, dtype, device).logits
    log_y = torch_softmax.log_softmax(x, 1)
    assert (log_y <= 0).all()
    torch.testing.assert_close(log_y.exp(), torch_softmax.softmax(x, 1))
    # logits that are normalized already stay
    torch.testing.assert_close(torch_softmax.log_softmax(log_y, 1), log_y)


@property_of
@given(SHAPES, SEEDS, st.sampled_from([-1024.0, 0.5, 64.0]), WIDE)
def test_a_shift_of_a_row_changes_no_bit(device, shape, seed, shift, dtype):
    rows = Rows(shape, seed, device=device)
    # multiples of 1/64, which the shift leaves exact
    x = (rows.logits * 64).round().to(dtype) / 64
    for function, args in (
        (torch_softmax.softmax, (1,)),
        (torch_softmax.log_softmax, (1,)),
        (torch_softmax.cross_entropy, (rows.ignoring,)),
        (torch_softmax.cross_entropy, (rows.probabilities.to(dtype),)),
    ):
        for here, there in zip(
            value_and_gradient(function, x, *args),
            value_and_gradient(function, x + shift, *args),
            strict=True,
        ):
            torch.testing.assert_close(here, there, rtol=0, atol=0)


@property_of
@given(SHAPES, SEEDS, SPREADS, st.sampled_from([0.0, 0.3]))
def test_the_gradient_of_a_row_sums_to_0(device, shape, seed, spread, label_smoothing):
    rows = Rows(shape, seed, spread, device=device)
    for function, *args in (
        (torch_softmax.softmax, 1),
        (torch_softmax.log_softmax, 1),
        (torch_softmax.cross_entropy, rows.ignoring, rows.weight),
        (torch_softmax.cross_entropy, rows.probabilities, rows.weight),
    ):
        options = {"label_smoothing": label_smoothing, "reduction": "sum"}
        options = options if function is torch_softmax.cross_entropy else {}
        _, dx = value_and_gradient(function, rows.logits, *args, **options)
        torch.testing.assert_close(dx.sum(1), torch.zeros_like(dx[:, 0]))


@property_of
@given(SHAPES, SEEDS, SPREADS)
def test_a_permutation_of_the_classes_permutes_the_gradient(device, shape, seed, spread):
    rows = Rows(shape, seed, spread, device=device)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed)).to(device)
    place = order.argsort()
    loss, dlogits = value_and_gradient(
        torch_softmax.cross_entropy, rows.logits, rows.target, rows.weight
    )
    permuted = value_and_gradient(
        torch_softmax.cross_entropy, rows.logits[:, order], place[rows.target], rows.weight[order]
    )
    torch.testing.assert_close(permuted, (loss, dlogits[:, order]))
    y = torch_softmax.softmax(rows.logits, 1)
    torch.testing.assert_close(torch_softmax.softmax(rows.logits[:, order], 1), y[:, order])


def row_results(logits, target):
    """All that the operators tell of each row, for itself, and the rows of their gradients."""
    logits = logits.detach().requires_grad_()
    stats = torch_softmax.cross_entropy_with_stats(logits, target, reduction="none")
    y, log_y = torch_softmax.softmax(logits, 1), torch_softmax.log_softmax(logits, 1)
    total = stats.loss + stats.lse * stats.entropy + (y * log_y.cos()).sum(1)
    (dlogits,) = torch.autograd.grad(total.sum(), logits)
    return [x.detach() for x in (*stats, y, log_y, dlogits)]


def tolerance_between_places(logits):
    """By how much a row's results may differ in another place of the matrix: mostly not at all.

    A kernel adds up a row from the 16-byte word on in which it begins, as PyTorch's on a GPU do:
    rows that do not all begin with one have sums of another order where they change places.
    """
    kernels = logits.device.type != "cpu" or registration.INTERPRETED
    begin_alike = logits.shape[1] * logits.element_size() % 16 == 0
    return {"rtol": 0, "atol": 0} if begin_alike or not kernels else {}


@property_of
@given(SHAPES, SEEDS, WIDE)
def test_a_permutation_of_the_rows_changes_no_bit(device, shape, seed, dtype):
    rows = Rows(shape, seed, dtype=dtype, device=device)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed)).to(device)
    tolerance = tolerance_between_places(rows.logits)
    for here, there in zip(
        row_results(rows.logits, rows.ignoring),
        row_results(rows.logits[order], rows.ignoring[order]),
        strict=True,
    ):
        torch.testing.assert_close(here[order], there, **tolerance)


@slow_property_of
@given(SHAPES, SEEDS, WIDE, st.integers(1, 3))
def test_rows_computed_apart_have_the_same_bits(device, shape, seed, dtype, n_parts):
    # whole tiles, as a GPU adds up a row in an order that depends on the tile, and two rows at
    # least, as PyTorch on a CPU adds up a single one in as many pieces as there are threads
    n_rows = n_parts * max(2, 2048 // shape[1])
    rows = Rows((n_rows, shape[1]), seed, dtype=dtype, device=device)
    together = row_results(rows.logits, rows.ignoring)
    apart = [
        row_results(*part)
        for part in zip(rows.logits.chunk(n_parts), rows.ignoring.chunk(n_parts), strict=True)
    ]
    # the interpreter adds up in one order wherever a row begins
    exact = {"rtol": 0, "atol": 0}
    tolerance = exact if device.type == "cpu" else tolerance_between_places(rows.logits)
    for whole, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, **tolerance)


@property_of
@given(SHAPES, SEEDS, WIDE)
def test_a_row_alone_has_the_results_that_it_has_among_others(device, shape, seed, dtype):
    rows = Rows(shape, seed, dtype=dtype, device=device)
    row = slice(seed % shape[0], seed % shape[0] + 1)
    among = [x[row] for x in row_results(rows.logits, rows.ignoring)]
    torch.testing.assert_close(row_results(rows.logits[row], rows.ignoring[row]), among)


@slow_property_of
@given(IMAGES, SEEDS, SPREADS, WIDE)
def test_the_layout_of_the_logits_does_not_matter(device, shape, seed, spread, dtype):
    rows = Rows(shape, seed, spread, dtype, device)
    x = rows.logits
    expected = row_results(x, rows.ignoring)
    for layout in (
        x.movedim(1, -1).contiguous().movedim(-1, 1),
        x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        F.pad(x, (1, 2, 3, 4, 1, 0))[1:, 3:-4, 1:-2],
        x.repeat_interleave(2, 1)[:, ::2],
    ):
        assert torch.equal(layout, x)
        torch.testing.assert_close(row_results(layout, rows.ignoring), expected, check_stride=False)
    matrix = row_results(x.movedim(1, -1).reshape(-1, shape[1]), rows.ignoring.flatten())
    torch.testing.assert_close(
        matrix,
        [y.movedim(1, -1).reshape(-1, shape[1]) if y.dim() == 3 else y.flatten() for y in expected],
    )


@property_of
@given(SHAPES, SEEDS, SPREADS, WIDE)
def test_the_entropy_lies_between_that_of_one_class_and_that_of_all(
    device, shape, seed, spread, dtype
):
    rows = Rows(shape, seed, spread, dtype, device)
    entropy = torch_softmax.cross_entropy_with_stats(rows.logits, rows.target).entropy
    torch.testing.assert_close(entropy, entropy.clamp(0, math.log(shape[1])))
    uniform = torch.zeros_like(rows.logits)
    entropy = torch_softmax.cross_entropy_with_stats(uniform, rows.target).entropy
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(shape[1])))


@property_of
@given(SHAPES, SEEDS, st.sampled_from(DTYPES))
def test_the_prediction_is_the_first_largest_logit(device, shape, seed, dtype):
    rows = Rows(shape, seed, dtype=dtype, device=device)
    # few values, so that most rows have several largest ones
    logits = rows.logits.round()
    prediction = torch_softmax.cross_entropy_with_stats(logits, rows.target).prediction
    assert torch.equal(prediction, logits.double().cpu().argmax(1).to(device))


@property_of
@given(SHAPES, SEEDS, SPREADS, st.sampled_from(DTYPES))
def test_the_lse_is_the_logarithm_of_the_sum_of_exponentials(device, shape, seed, spread, dtype):
    rows = Rows(shape, seed, spread, dtype, device)
    wide = rows.logits.to(torch.promote_types(dtype, torch.float32))
    lse = torch_softmax.cross_entropy_with_stats(rows.logits, rows.target).lse
    assert_as_accurate_as_torch(lse, wide.logsumexp(1), wide.double().logsumexp(1))
    assert (lse >= wide.amax(1)).all()


@property_of
@given(SHAPES, SEEDS, SPREADS, st.sampled_from([{}, {"softcap": 30.0}, {"logit_scale": 3.0}]))
def test_a_loss_is_not_negative(device, shape, seed, spread, options):
    rows = Rows(shape, seed, spread, torch.float32, device)
    smoothed = {"label_smoothing": 0.1, "z_loss": 0.1}
    for target, more in (
        (rows.ignoring, smoothed),
        (rows.probabilities, smoothed),
        # sure and right
        (rows.logits.argmax(1), {}),
    ):
        loss = torch_softmax.cross_entropy(rows.logits, target, reduction="none", **options, **more)
        assert (loss >= 0).all()
        assert torch_softmax.cross_entropy(rows.logits, target, **options, **more) >= 0


@property_of
@given(SHAPES, SEEDS, SPREADS)
def test_full_smoothing_is_a_uniform_target(device, shape, seed, spread):
    rows = Rows(shape, seed, spread, device=device)
    uniform = torch.full_like(rows.logits, 1 / shape[1])
    expected = value_and_gradient(torch_softmax.cross_entropy, rows.logits, uniform)
    for target in (rows.target, rows.probabilities):
        torch.testing.assert_close(
            value_and_gradient(
                torch_softmax.cross_entropy, rows.logits, target, label_smoothing=1.0
            ),
            expected,
        )


@property_of
@given(SHAPES, SEEDS, SPREADS, OPTIONS, st.sampled_from(["sum", "none"]))
def test_a_one_hot_target_is_its_class(device, shape, seed, spread, options, reduction):
    rows = Rows(shape, seed, spread, device=device)
    one_hot = F.one_hot(rows.target, shape[1]).to(rows.logits)
    options = options | {"weight": rows.weight, "reduction": reduction}
    torch.testing.assert_close(
        value_and_gradient(torch_softmax.cross_entropy, rows.logits, one_hot, **options),
        value_and_gradient(torch_softmax.cross_entropy, rows.logits, rows.target, **options),
    )


@property_of
@given(
    SHAPES_WITH_GRADIENT,
    SEEDS,
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    OPTIONS,
    st.sampled_from(["mean", "sum", "none"]),
    st.booleans(),
    st.booleans(),
)
def test_options_compute_their_formulas(
    device, shape, seed, dtype, options, reduction, weighted, soft
):
    rows = Rows(shape, seed, dtype=dtype, device=device)
    arguments = (
        rows.logits,
        rows.probabilities if soft else rows.ignoring,
        rows.weight if weighted else None,
    )
    widened = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
    options = options | {"reduction": reduction}
    for actual, baseline, exact in zip(
        value_and_gradient(torch_softmax.cross_entropy, *arguments, **options),
        value_and_gradient(definition, *arguments, **options),
        value_and_gradient(definition, *widened, **options),
        strict=True,
    ):
        assert_as_accurate_as_torch(actual, baseline, exact)


@property_of
@given(SHAPES, SEEDS, OPTIONS, st.booleans())
def test_a_power_of_2_as_scale_is_that_of_the_logits(device, shape, seed, options, soft):
    rows = Rows(shape, seed, dtype=torch.float32, device=device)
    target = rows.probabilities if soft else rows.ignoring
    options = {name: x for name, x in options.items() if name != "logit_scale"}
    stats = torch_softmax.cross_entropy_with_stats(rows.logits, target, logit_scale=4.0, **options)
    expected = torch_softmax.cross_entropy_with_stats(4 * rows.logits, target, **options)
    torch.testing.assert_close(stats, expected, rtol=0, atol=0)


@property_of
@given(SHAPES, SEEDS, OPTIONS, st.booleans(), st.booleans())
def test_reductions_are_those_of_the_rows(device, shape, seed, options, weighted, soft):
    rows = Rows(shape, seed, device=device)
    target = rows.probabilities if soft else rows.ignoring
    weight = rows.weight if weighted else None
    none, total, mean = (
        torch_softmax.cross_entropy(rows.logits, target, weight, reduction=reduction, **options)
        for reduction in ("none", "sum", "mean")
    )
    torch.testing.assert_close(total, none.sum())
    counted = (none.new_ones(none.shape) if soft else (rows.ignoring != -100).to(none)).sum()
    if weighted and not soft:
        counted = (rows.weight[rows.target] * (rows.ignoring != -100)).sum()
    torch.testing.assert_close(mean, total / counted)
