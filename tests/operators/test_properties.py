"""Properties of softmax and cross-entropy for any input, on inputs drawn by Hypothesis."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import torch_softmax
from devices import runs_kernels
from numerics import DTYPES, value_and_gradients
from strategies import IMAGES, SEEDS, SHAPES, SPREADS, WIDE, Rows, property_of, slow_property_of


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
    # normalized logits do not change
    torch.testing.assert_close(torch_softmax.log_softmax(log_y, 1), log_y)


@property_of
@given(SHAPES, SEEDS, st.sampled_from([-1024.0, 0.5, 64.0]), WIDE)
def test_a_shift_of_a_row_changes_no_bit(device, shape, seed, shift, dtype):
    rows = Rows(shape, seed, device=device)
    # multiples of 1/64, to which the shift is added exactly
    x = (rows.logits * 64).round().to(dtype) / 64
    for function, args in (
        (torch_softmax.softmax, (1,)),
        (torch_softmax.log_softmax, (1,)),
        (torch_softmax.cross_entropy, (rows.ignoring,)),
        (torch_softmax.cross_entropy, (rows.probabilities.to(dtype),)),
    ):
        for here, there in zip(
            value_and_gradients(function, x, *args),
            value_and_gradients(function, x + shift, *args),
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
        _, dx = value_and_gradients(function, rows.logits, *args, **options)
        torch.testing.assert_close(dx.sum(1), torch.zeros_like(dx[:, 0]))


@property_of
@given(SHAPES, SEEDS, SPREADS)
def test_a_permutation_of_the_classes_permutes_the_gradient(device, shape, seed, spread):
    rows = Rows(shape, seed, spread, device=device)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed)).to(device)
    place = order.argsort()
    loss, dlogits = value_and_gradients(
        torch_softmax.cross_entropy, rows.logits, rows.target, rows.weight
    )
    permuted = value_and_gradients(
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

    A kernel adds up a row from the last 16-byte boundary before it, as PyTorch's on a GPU do: rows
    that do not all begin at one are added up in another order in another place.
    """
    kernels = runs_kernels(logits.device)
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
    # whole tiles, because on a GPU the order of a row's sum depends on the tile; at least two rows,
    # because PyTorch on a CPU splits the sum of a single row among threads
    n_rows = n_parts * max(2, 2048 // shape[1])
    rows = Rows((n_rows, shape[1]), seed, dtype=dtype, device=device)
    together = row_results(rows.logits, rows.ignoring)
    apart = [
        row_results(*part)
        for part in zip(rows.logits.chunk(n_parts), rows.ignoring.chunk(n_parts), strict=True)
    ]
    # the interpreter sums in one order, whatever the alignment of the row
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
