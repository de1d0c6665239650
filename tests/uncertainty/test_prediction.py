import math

import pytest
import torch

from torch_softmax import uncertainty

LOG_2 = math.log(2)


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
