import math

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from torch_softmax import uncertainty
from torch_softmax.uncertainty import TemperatureScaling

LOG_2 = math.log(2)


def calibrated_rows(n_rows, n_classes, spread=3.0):
    """Logits, and targets that are drawn with just the probabilities that the logits name."""
    logits = spread * torch.randn(n_rows, n_classes, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1).squeeze(1)


def mean_loss(logits, target):
    return F.cross_entropy(logits.double(), target).item()


def loss_by_temperature(logits, target, temperature):
    return mean_loss(logits.double() / temperature.double(), target)


def test_predict_of_a_known_row():
    # probabilities 1/8, 4/8, 2/8, 1/8
    logits = LOG_2 * torch.tensor([0.0, 2.0, 1.0, 0.0])
    prediction = uncertainty.predict(logits, top_k=2)
    expected = torch.tensor([0.125, 0.5, 0.25, 0.125])
    torch.testing.assert_close(prediction.probabilities, expected)
    assert prediction.label == 1
    torch.testing.assert_close(prediction.confidence, torch.tensor(0.5))
    torch.testing.assert_close(prediction.entropy, torch.tensor(1.75 * LOG_2))
    torch.testing.assert_close(prediction.margin, torch.tensor(0.25))
    assert prediction.top_classes.tolist() == [1, 2]
    torch.testing.assert_close(prediction.top_probabilities, torch.tensor([0.5, 0.25]))


def test_predict_of_many_rows_is_that_of_each():
    logits = torch.randn(5, 7)
    together = uncertainty.predict(logits)
    each = [uncertainty.predict(row) for row in logits]
    for name in together._fields:
        torch.testing.assert_close(
            getattr(together, name), torch.stack([getattr(one, name) for one in each])
        )


# one row, none, fewer classes than are sorted anyway
@pytest.mark.parametrize(("shape", "top_k"), [((1, 10), 3), ((0, 10), 3), ((4, 1), 1), ((4, 2), 2)])
def test_predict_has_its_shapes(shape, top_k):
    prediction = uncertainty.predict(torch.randn(shape), top_k)
    rows = shape[:1]
    assert prediction.probabilities.shape == shape
    assert {prediction[i].shape for i in range(1, 5)} == {rows}
    assert prediction.top_classes.shape == prediction.top_probabilities.shape == (*rows, top_k)


@pytest.mark.parametrize("n_classes", [4, 100, 5000])
def test_predict_names_the_first_of_equal_classes(n_classes):
    prediction = uncertainty.predict(torch.zeros(2, n_classes), top_k=4)
    assert prediction.label.tolist() == [0, 0]
    assert prediction.top_classes.tolist() == [[0, 1, 2, 3]] * 2
    assert prediction.margin.tolist() == [0, 0]
    torch.testing.assert_close(prediction.entropy, torch.full((2,), math.log(n_classes)))


def test_predict_orders_logits_whose_probabilities_round_to_equal_ones():
    prediction = uncertainty.predict(torch.tensor([-200.0, -150.0, 0.0]))
    assert prediction.top_classes.tolist() == [2, 1, 0]
    assert prediction.top_probabilities.tolist() == [1, 0, 0]


def test_predict_of_one_class_is_sure():
    prediction = uncertainty.predict(torch.randn(3, 1), top_k=1)
    assert prediction.confidence.tolist() == prediction.margin.tolist() == [1, 1, 1]
    assert prediction.entropy.tolist() == [0, 0, 0]


def test_predict_of_huge_and_infinite_logits_is_finite():
    inf = math.inf
    prediction = uncertainty.predict(torch.tensor([[3e38, -3e38, 0.0], [-inf, 1.0, -inf]]))
    assert prediction.label.tolist() == [0, 1]
    assert prediction.confidence.tolist() == [1, 1]
    assert prediction.entropy.tolist() == [0, 0]


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_predict_without_a_distribution_says_nan(row):
    prediction = uncertainty.predict(torch.tensor([row]), top_k=1)
    for numbers in (prediction.confidence, prediction.entropy, prediction.margin):
        assert numbers.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predict_of_half_precision_computes_in_float32(dtype):
    logits = (3 * torch.randn(6, 10)).to(dtype)
    for ours, wide in zip(
        uncertainty.predict(logits), uncertainty.predict(logits.float()), strict=True
    ):
        torch.testing.assert_close(ours, wide, rtol=1e-6, atol=1e-6)


def test_predict_has_gradients():
    def numbers(logits):
        prediction = uncertainty.predict(logits)
        return prediction.confidence, prediction.entropy, prediction.margin

    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(numbers, logits)


@pytest.mark.parametrize(
    ("logits", "top_k", "error", "message"),
    [
        ([[0.0, 1.0]], 1, TypeError, "predict needs logits to be a Tensor, got list"),
        (torch.zeros(2, 3, dtype=torch.int64), 1, TypeError, "predict needs logits to be float16"),
        (torch.zeros(()), 1, ValueError, r"of shape \(classes,\) or \(rows, classes\), got \(\)"),
        (torch.zeros(2, 3, 4), 1, ValueError, r"got \(2, 3, 4\)"),
        (torch.zeros(2, 3), 4, ValueError, "predict needs top_k of at most the 3 classes, got 4"),
        (torch.zeros(2, 3), 0, ValueError, "predict needs top_k of at least 1, got 0"),
        (torch.zeros(2, 3), 1.0, TypeError, "predict needs top_k of type int, got 1.0"),
        (torch.zeros(2, 0), 1, ValueError, "predict needs top_k of at most the 0 classes, got 1"),
    ],
)
def test_predict_names_what_it_needs(logits, top_k, error, message):
    with pytest.raises(error, match=message):
        uncertainty.predict(logits, top_k)


@pytest.mark.parametrize("known", [0.3, 1.0, 2.5])
def test_temperature_scaling_recovers_a_known_temperature(known):
    logits, target = calibrated_rows(20_000, 10)
    scaling = TemperatureScaling().fit(known * logits, target)
    # 20 000 rows tell the temperature to about 1 %
    assert scaling.temperature.item() == pytest.approx(known, rel=0.03)


def test_temperature_scaling_finds_the_least_loss():
    logits, target = calibrated_rows(500, 10)
    logits = 4 * logits
    temperature = TemperatureScaling().fit(logits, target).temperature
    least = loss_by_temperature(logits, target, temperature)
    for factor in (0.99, 1.01):
        assert least < loss_by_temperature(logits, target, factor * temperature)


def test_temperature_scaling_of_a_known_row():
    # right in 3 of 4 rows, so that calibrated logits differ by log(3)
    logits = torch.tensor([[4.0, 0.0]]).expand(4, 2)
    scaling = TemperatureScaling().fit(logits, torch.tensor([0, 0, 0, 1]))
    assert scaling.temperature.item() == pytest.approx(4 / math.log(3), rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_temperature_scaling_never_raises_the_loss(seed):
    random = torch.Generator().manual_seed(seed)
    n_rows, n_classes = 1 + seed, 1 + seed % 7
    logits = 10 ** (seed % 5 - 2) * torch.randn(n_rows, n_classes, generator=random)
    target = torch.randint(n_classes, (n_rows,), generator=random)
    temperature = TemperatureScaling().fit(logits, target).temperature
    before = mean_loss(logits, target)
    assert loss_by_temperature(logits, target, temperature) <= before + 1e-10


def test_temperature_scaling_of_separable_logits_stops_at_its_least():
    target = torch.arange(20) % 4
    scaling = TemperatureScaling().fit(F.one_hot(target, 4).float(), target)
    least = TemperatureScaling.MIN_TEMPERATURE
    assert scaling.temperature.item() == pytest.approx(least, rel=1e-6)


def test_temperature_scaling_of_logits_that_are_always_wrong_stops_at_its_most():
    target = torch.arange(20) % 4
    scaling = TemperatureScaling().fit(-F.one_hot(target, 4).float(), target)
    most = TemperatureScaling.MAX_TEMPERATURE
    assert scaling.temperature.item() == pytest.approx(most, rel=1e-6)


@pytest.mark.parametrize("logits", [torch.randn(6, 1), torch.full((6, 3), 2.5), torch.zeros(6, 3)])
def test_temperature_scaling_that_learns_nothing_stays_at_one(logits):
    scaling = TemperatureScaling().fit(logits, torch.zeros(6, dtype=torch.int64))
    assert scaling.temperature == 1


def test_temperature_scaling_fitted_again_forgets_the_first():
    logits, target = calibrated_rows(200, 5)
    scaling = TemperatureScaling().fit(9 * logits, target)
    assert scaling.fit(logits, target).temperature == (
        TemperatureScaling().fit(logits, target).temperature
    )


def test_temperature_scaling_keeps_its_temperature_in_a_state_dict():
    logits, target = calibrated_rows(200, 5)
    fitted = TemperatureScaling().fit(3 * logits, target)
    loaded = TemperatureScaling()
    loaded.load_state_dict(fitted.state_dict())
    assert torch.equal(loaded(logits), fitted(logits))
    assert repr(loaded) == f"TemperatureScaling(temperature={fitted.temperature.item():.4g})"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_temperature_scaling_takes_and_keeps_every_dtype(dtype):
    logits, target = calibrated_rows(200, 5)
    scaling = TemperatureScaling().fit((3 * logits).to(dtype), target.to(torch.uint8))
    assert scaling.temperature.item() == pytest.approx(3, rel=0.3)
    assert scaling(logits.to(dtype)).dtype == dtype


def test_temperature_scaling_calibrates_and_keeps_every_label():
    logits, target = calibrated_rows(5000, 10)
    logits = 3 * logits
    calibrated = TemperatureScaling().fit(logits, target)(logits)
    before, after = uncertainty.predict(logits), uncertainty.predict(calibrated)
    assert torch.equal(before.label, after.label)
    for score in (uncertainty.calibration_error, uncertainty.brier_score):
        assert score(after.probabilities, target) < score(before.probabilities, target)


def test_temperature_scaling_leaves_the_graph_of_its_logits_alone():
    logits = torch.randn(8, 3, requires_grad=True)
    scaling = TemperatureScaling().fit(logits, torch.arange(8) % 3)
    assert not scaling.temperature.requires_grad
    assert scaling(logits).requires_grad


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (torch.zeros(0, 3), [], ValueError, "fit needs logits of at least one row, got none"),
        (torch.zeros(2), [0], ValueError, r"fit needs logits of shape \(rows, classes\), got"),
        (torch.zeros(2, 3), [0], ValueError, r"fit needs target of shape \(2,\), one class per"),
        (torch.zeros(2, 3), [0, 3], IndexError, r"fit needs target in \[0, 3\), got 3"),
        (torch.zeros(2, 3), [-100, 0], IndexError, r"fit needs target in \[0, 3\), got -100"),
        (torch.full((1, 2), math.nan), [0], ValueError, "fit needs logits whose cross-entropy is"),
        (torch.tensor([[-math.inf, 0]]), [0], ValueError, "fit needs logits whose cross-entropy"),
    ],
)
def test_temperature_scaling_names_what_it_needs(logits, target, error, message):
    scaling = TemperatureScaling()
    with pytest.raises(error, match=message):
        scaling.fit(logits, torch.tensor(target, dtype=torch.int64))
    assert scaling.temperature == 1


def test_temperature_scaling_refuses_probabilities_as_target():
    with pytest.raises(TypeError, match=r"fit needs target to be class indices .* got torch.float"):
        TemperatureScaling().fit(torch.zeros(2, 3), torch.zeros(2))


# confidences 0.9 (right), 0.7 (wrong), 0.6 (right), 0.75 (right)
KNOWN = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.25, 0.75]])
KNOWN_TARGET = torch.tensor([0, 0, 0, 1])


def test_reliability_of_known_rows():
    bins = uncertainty.reliability(KNOWN, KNOWN_TARGET, n_bins=4)
    assert bins.n_rows.tolist() == [0, 0, 2, 2]
    # 0.75 is a border, and belongs to the bin above it
    torch.testing.assert_close(bins.confidence[2:], torch.tensor([0.65, 0.825]))
    torch.testing.assert_close(bins.accuracy[2:], torch.tensor([0.5, 1.0]))
    assert bins.confidence[:2].isnan().all()
    assert bins.accuracy[:2].isnan().all()


def test_calibration_error_of_known_rows():
    error = uncertainty.calibration_error(KNOWN, KNOWN_TARGET, n_bins=4)
    torch.testing.assert_close(error, torch.tensor((0.15 + 0.175) / 2))


def test_calibration_error_counts_certainty_in_the_last_bin():
    probabilities = torch.tensor([[1.0, 0.0], [0.96, 0.04]])
    bins = uncertainty.reliability(probabilities, torch.tensor([0, 1]), n_bins=10)
    assert bins.n_rows.tolist() == [0] * 9 + [2]


@pytest.mark.parametrize("n_bins", [1, 10, 15, 100])
@pytest.mark.parametrize(("n_rows", "n_classes"), [(1, 10), (300, 3), (2000, 10)])
def test_calibration_error_agrees_with_torchmetrics(n_rows, n_classes, n_bins):
    logits = torch.randn(n_rows, n_classes)
    target = torch.randint(n_classes, (n_rows,))
    probabilities = logits.softmax(1)
    actual = uncertainty.calibration_error(probabilities, target, n_bins)
    expected = multiclass_calibration_error(probabilities, target, n_classes, n_bins, "l1")
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_calibration_error_of_calibrated_rows_is_small():
    logits, target = calibrated_rows(50_000, 10)
    assert uncertainty.calibration_error(logits.softmax(1), target) < 0.01


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([1.0, 0.0, 0.0], 0.0), ([0.0, 1.0, 0.0], 2.0), ([0.5, 0.25, 0.25], 0.375)],
)
def test_brier_score_of_a_known_row(probabilities, expected):
    score = uncertainty.brier_score(torch.tensor([probabilities]), torch.tensor([0]))
    assert score.item() == expected


def test_brier_score_is_the_squared_distance_from_the_truth():
    probabilities = torch.randn(300, 7).softmax(1)
    target = torch.randint(7, (300,))
    expected = (probabilities - F.one_hot(target, 7)).square().sum(1).mean()
    torch.testing.assert_close(uncertainty.brier_score(probabilities, target), expected)


def test_brier_score_has_a_gradient():
    def score(logits):
        return uncertainty.brier_score(logits.softmax(1), torch.arange(4) % 3)

    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(score, logits)


SCORES = (uncertainty.calibration_error, uncertainty.brier_score)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_compute_in_float32(score, dtype):
    probabilities = torch.randn(200, 10).softmax(1).to(dtype)
    target = torch.randint(10, (200,))
    assert torch.equal(score(probabilities, target), score(probabilities.float(), target))


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_no_rows_are_nan(score):
    assert score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).isnan()


@pytest.mark.parametrize("score", [*SCORES, uncertainty.reliability])
@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([[2.0, 1.0]], "needs probabilities that sum to 1 in each row, got a sum of 3"),
        ([[1.5, -0.5]], "needs probabilities of at least 0, got -0.5"),
        ([[math.nan, 1.0]], "needs probabilities that sum to 1 in each row, got a sum of nan"),
        ([0.5, 0.5], r"needs probabilities of shape \(rows, classes\), got \(2,\)"),
    ],
)
def test_scores_refuse_what_is_no_distribution(score, probabilities, message):
    with pytest.raises(ValueError, match=f"{score.__name__} {message}"):
        score(torch.tensor(probabilities), torch.tensor([0]))


@pytest.mark.parametrize("n_bins", [0, -3])
def test_calibration_error_needs_a_bin(n_bins):
    with pytest.raises(ValueError, match="calibration_error needs n_bins of at least 1"):
        uncertainty.calibration_error(KNOWN, KNOWN_TARGET, n_bins)
