import pytest
import torch
import torch.nn.functional as F

from torch_softmax.uncertainty import nearest_neighbor_distance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 3])
def test_nearest_neighbor_distance_is_that_of_unit_vectors(dtype, k):
    # more rows than a block has
    features, known = torch.randn(1500, 8).to(dtype), torch.randn(50, 8).to(dtype)
    exact = torch.cdist(F.normalize(features.double(), dim=1), F.normalize(known.double(), dim=1))
    actual = nearest_neighbor_distance(features, known, k)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        actual.double(), exact.sort(dim=1).values[:, k - 1], atol=2e-3, rtol=0
    )


def test_nearest_neighbor_distance_ignores_the_length_of_a_row():
    features, known = torch.randn(20, 8), torch.randn(30, 8)
    distance = nearest_neighbor_distance(features, known)
    torch.testing.assert_close(nearest_neighbor_distance(100 * features, known / 7), distance)


def test_nearest_neighbor_distance_of_rows_to_themselves_takes_the_second():
    rows = torch.randn(40, 8)
    torch.testing.assert_close(
        nearest_neighbor_distance(rows, rows), torch.zeros(40), atol=2e-3, rtol=0
    )
    others = [torch.cat([rows[:i], rows[i + 1 :]]) for i in range(40)]
    exact = [
        nearest_neighbor_distance(row[None], other) for row, other in zip(rows, others, strict=True)
    ]
    second = nearest_neighbor_distance(rows, rows, k=2)
    torch.testing.assert_close(second, torch.cat(exact), atol=2e-3, rtol=0)


def test_nearest_neighbor_distance_of_no_rows_is_empty():
    assert nearest_neighbor_distance(torch.zeros(0, 3), torch.ones(2, 3)).shape == (0,)


def test_nearest_neighbor_distance_of_nan_is_nan():
    features = torch.tensor([[float("nan"), 1.0], [1.0, 1.0]])
    distance = nearest_neighbor_distance(features, torch.ones(2, 2))
    assert distance.isnan().tolist() == [True, False]


def test_nearest_neighbor_distance_is_differentiable():
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    known = torch.randn(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: nearest_neighbor_distance(x, known), features)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], torch.ones(1, 1)), TypeError, "needs features to be a Tensor"),
        ((torch.ones(1, 1), torch.ones(1, 1).long()), TypeError, "known"),
        ((torch.ones(1, 2), torch.ones(1, 3)), ValueError, r"got \(1, 2\) and \(1, 3\)"),
        ((torch.ones(2), torch.ones(1, 2)), ValueError, r"got \(2,\) and \(1, 2\)"),
        ((torch.ones(1, 2), torch.ones(1, 2), 2), ValueError, "at least k = 2 known rows, got 1"),
        ((torch.ones(1, 2), torch.ones(1, 2), 0), ValueError, "k"),
    ],
)
def test_nearest_neighbor_distance_refuses_other_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        nearest_neighbor_distance(*arguments)
