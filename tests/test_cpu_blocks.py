"""What the CPU's blocks must not change: results are those of all rows in one block."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from torch_softmax._cpu import blocks
from torch_softmax.benchmark.memory import peak_bytes_on_cpu

pytestmark = pytest.mark.usefixtures("not_compiled")

LAYOUTS = {
    "matrix": lambda x: x,
    "channels first": lambda x: x.view(7, 4, 13).transpose(1, 2),
    "images": lambda x: x.view(7, 2, 2, 13).permute(0, 3, 1, 2),
    "sliced": lambda x: torch.cat([x, x], 1)[:, 3:16],
}


def losses(logits, kind, **options):
    rows = logits[:, 0].shape
    target = torch.arange(rows.numel()).view(rows) % 13
    if kind == "probabilities":
        target = F.one_hot(target, 13).movedim(-1, 1).to(logits.dtype) * 0.9 + 0.1 / 13
    if kind == "ignored":
        target = target.masked_fill(target % 3 == 0, -100)
    weight = torch.linspace(0.5, 1.5, 13) if kind == "weighted" else None
    return torch_softmax.cross_entropy(logits, target, weight, **options)


@pytest.mark.parametrize("elements", [1, 13, 40, 200])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["indices", "ignored", "weighted", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}])
def test_blocks_have_the_results_of_all_rows(
    elements, layout, kind, reduction, options, monkeypatch
):
    logits = LAYOUTS[layout](torch.randn(28, 13))
    results = []
    for block_elements in (blocks.BLOCK_ELEMENTS, elements):
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block_elements)
        x = logits.detach().requires_grad_()
        loss = losses(x, kind, reduction=reduction, **options)
        results.append((loss, *torch.autograd.grad(loss.sum(), x)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("elements", [1, 40, 2**20])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_blocks_mend_rows_that_are_not_finite_in_place_too(elements, bad, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    logits = torch.randn(6, 10)
    logits[2] = bad
    logits[4, 1] = -torch.inf
    target = torch.tensor([0, 1, -100, 3, 1, 5])
    results = []
    for inplace in (False, True):
        x = logits.detach().requires_grad_()
        loss = torch_softmax.cross_entropy(x * 1, target, reduction="sum", inplace=inplace)
        results.append((loss, *torch.autograd.grad(loss, x)))
    assert results[0][0] == torch.inf and (results[0][1][2] == 0).all()
    assert results[0][1].isfinite().all()
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_blocks_leave_the_logits_alone_where_a_later_target_is_no_class(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1)
    leaf = torch.randn(3, 4, requires_grad=True)
    logits = leaf * 1
    with pytest.raises(IndexError, match="got 4"):
        torch_softmax.cross_entropy(logits, torch.tensor([0, 1, 4]), inplace=True)
    assert torch.equal(logits, leaf)


def step(logits, target, inplace):
    torch_softmax.cross_entropy(logits, target, inplace=inplace).backward()


def test_a_step_takes_one_matrix_beside_its_input_and_in_place_none():
    x = torch.randn(4096, 1000)
    target = torch.randint(1000, (4096,))
    peaks = []
    for inplace in (False, True):
        peak = peak_bytes_on_cpu(
            partial(step, x.clone().requires_grad_() + 0, target, inplace=inplace)
        )
        peaks.append(peak / x.nbytes)
    assert peaks[0] < 1.05 and peaks[1] < 0.05
