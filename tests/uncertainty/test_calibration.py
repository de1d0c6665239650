import math

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from calibrated_rows import calibrated_rows
from torch_softmax import uncertainty

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
