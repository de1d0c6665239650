"""Options of cross_entropy beyond PyTorch's: z_loss, softcap and logit_scale."""

import pytest
import torch

import torch_softmax
from devices import with_and_without_compiler
from numerics import assert_agrees
from operator_pairs import cross_entropy_definition, softcapped, some_classes
from pairwise import pairwise

OPTIONS = [
    {"z_loss": 0.1},
    {"softcap": 2.0},
    {"logit_scale": -1.5},
    {"z_loss": 0.1, "softcap": 3.0, "logit_scale": 0.5, "label_smoothing": 0.2},
]
# few classes in a partial block, one block per row, several blocks per row
SHAPES = [(37, 10), (3, 1000), (2, 20_011)]


@pytest.mark.parametrize(
    ("shape", "options", "soft", "dtype"),
    pairwise(SHAPES, OPTIONS, [False, True], [torch.bfloat16, torch.float32, torch.float64]),
)
@with_and_without_compiler
def test_options_are_as_accurate_as_their_definition(shape, options, soft, dtype, device):
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    target = torch.randint(shape[1], shape[:1], device=device)
    target[0] = -100
    if soft:
        target = torch.rand(shape, device=device).softmax(1).to(dtype)
    assert_agrees(torch_softmax.cross_entropy, cross_entropy_definition, logits, target, **options)


# 10 and 33 leave masked columns in a block, 20,011 in the last block of a row
@pytest.mark.parametrize(("n_cols", "softcap"), [(10, 2.0), (33, 5.0), (20_011, 2.0)])
def test_break_01_softcap_ignores_masked_columns(softcap, n_cols, device):
    # these logits become -softcap, as would padding of -inf, which then would count as a class
    logits = torch.randn(3, n_cols, device=device) - 10 * softcap
    target = some_classes(logits)
    assert_agrees(
        torch_softmax.cross_entropy, cross_entropy_definition, logits, target, softcap=softcap
    )
    stats = torch_softmax.cross_entropy_with_stats(logits.double(), target, softcap=softcap)
    exact = torch.distributions.Categorical(logits=softcapped(logits.double(), softcap))
    torch.testing.assert_close(stats.lse, softcapped(logits.double(), softcap).logsumexp(1))
    torch.testing.assert_close(stats.entropy, exact.entropy())
