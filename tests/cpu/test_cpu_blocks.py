"""Without a compiler: results in blocks of rows are those of all rows in one block."""

import pytest
import torch

from cpu_losses import loss_and_gradient, some_targets
from torch_softmax._cpu import blocks

LAYOUTS = {
    "matrix": lambda x: x,
    "channels first": lambda x: x.view(7, 4, 13).transpose(1, 2).contiguous().transpose(1, 2),
    "images": lambda x: x.view(7, 2, 2, 13).permute(0, 3, 1, 2).contiguous().movedim(1, -1),
    "sliced": lambda x: torch.cat([x, x], 1)[:, 3:16],
}


pytestmark = pytest.mark.usefixtures("not_compiled")


@pytest.mark.parametrize("elements", [1, 13, 40, 200])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}])
@pytest.mark.parametrize("inplace", [False, True])
def test_blocks_have_the_results_of_all_rows(
    elements, layout, kind, weighted, options, inplace, monkeypatch
):
    logits = LAYOUTS[layout](torch.randn(28, 13))
    target = some_targets(logits, kind)
    weight = torch.linspace(0.5, 1.5, 13) if weighted else None
    expected = loss_and_gradient(logits, target, weight, **options)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    copy = logits.clone(memory_format=torch.preserve_format)
    results = loss_and_gradient(copy, target, weight, inplace=inplace, **options)
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize("elements", [1, 40, 2**20])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_blocks_ignore_what_an_ignored_row_holds_in_place_too(elements, bad, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    logits = torch.randn(6, 10)
    logits[2] = bad
    logits[4, 1] = -torch.inf
    target = torch.tensor([0, 1, -100, 3, 1, 5])
    results = [
        loss_and_gradient(logits.clone(), target, reduction="sum", inplace=inplace)
        for inplace in (False, True)
    ]
    assert results[0][0] == torch.inf and (results[0][1][2] == 0).all()
    assert results[0][1].isfinite().all()
    torch.testing.assert_close(*results, rtol=0, atol=0)
