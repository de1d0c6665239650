import math

import pytest
import torch

import torch_softmax
from devices import with_and_without_compiler
from numerics import DTYPES, value_and_gradients
from operator_pairs import assert_cross_entropy_agrees
from pairwise import pairwise

# few classes with a partial last block of rows, one block per row, several blocks per row
SHAPES = [(300, 10), (5, 1000), (2, 20_011)]
REDUCTIONS = ["mean", "sum", "none"]


def some_targets(shape, n_classes, device):
    """Random classes, every fourth of them ignored."""
    target = torch.randint(n_classes, shape, device=device)
    target.flatten()[::4] = -100
    return target


@pytest.mark.parametrize(
    ("shape", "reduction", "label_smoothing", "weighted", "dtype"),
    pairwise(SHAPES, REDUCTIONS, [0.0, 0.1], [False, True], DTYPES),
)
@with_and_without_compiler
def test_cross_entropy_is_as_accurate_as_torch(
    shape, reduction, label_smoothing, weighted, dtype, device
):
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    target = some_targets(shape[:1], shape[1], device)
    weight = (torch.rand(shape[1], device=device) + 0.5).to(dtype) if weighted else None
    assert_cross_entropy_agrees(
        logits, target, weight, reduction=reduction, label_smoothing=label_smoothing
    )


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 7, 5), (2, 7, 3, 4), (2, 7, 1, 2, 3)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_takes_every_shape(shape, reduction, device):
    logits = torch.randn(shape, device=device)
    target = torch.randint(7, shape[:1][len(shape) == 1 :] + shape[2:], device=device)
    weight = torch.rand(7, device=device)
    assert_cross_entropy_agrees(logits, target, weight, reduction=reduction, label_smoothing=0.1)


def test_cross_entropy_gives_the_same_bits_every_run(device):
    logits = torch.randn(500, 10, device=device)
    target = some_targets((500,), 10, device)
    torch.use_deterministic_algorithms(True)
    runs = [value_and_gradients(torch_softmax.cross_entropy, logits, target) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


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


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1, math.nan, math.inf])
def test_break_18_a_smoothing_out_of_range_raises(label_smoothing):
    with pytest.raises(ValueError, match="cross_entropy needs label_smoothing"):
        torch_softmax.cross_entropy(LOGITS, TARGET, label_smoothing=label_smoothing)
