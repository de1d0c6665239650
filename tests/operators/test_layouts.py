"""Memory layouts: any strides, alignment and device."""

import pytest
import torch

import torch_softmax
from devices import needs_gpus, with_and_without_compiler
from numerics import assert_agrees, value_and_gradients
from operator_pairs import SOFTMAX, assert_cross_entropy_agrees, each_operator, some_classes

LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "rows left out": lambda x: x[:, :, 1:],
    "classes left out": lambda x: x[:, 1:6],
    "every second position": lambda x: x[..., ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "tokens": lambda x: x[:, :, 0, :-1].transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@each_operator
@with_and_without_compiler
def test_every_operator_takes_every_layout(ours, theirs, layout, device):
    assert_agrees(ours, theirs, layout(torch.randn(3, 7, 4, 6, device=device)))


# offsets of the last row, and of the last class, from the first one
@pytest.mark.parametrize("strides", [(2**30, 1), (1, 2**29)], ids=["rows", "classes"])
@each_operator
@pytest.mark.usefixtures("gigabytes")
def test_break_16_offsets_pass_2_to_the_31(ours, theirs, strides, device):
    logits = spread_out(torch.randn(3, 5, device=device, dtype=torch.half), strides)
    dense = logits.clone(memory_format=torch.contiguous_format)
    assert max(2 * strides[0], 4 * strides[1]) >= 2**31
    torch.testing.assert_close(
        value_and_gradients(ours, logits), value_and_gradients(ours, dense), check_stride=False
    )
    assert_agrees(ours, theirs, dense)


@pytest.mark.usefixtures("gigabytes")
def test_break_16_an_inplace_gradient_passes_2_to_the_31(device):
    leaf = torch.randn(3, 5, device=device, dtype=torch.half, requires_grad=True)
    target = some_classes(leaf)
    expected = value_and_gradients(torch_softmax.cross_entropy, leaf, target)
    logits = spread_out(leaf, (2**30, 1))
    loss = torch_softmax.cross_entropy(logits, target, inplace=True)
    loss.backward()
    torch.testing.assert_close((loss.detach(), leaf.grad), expected)
    torch.testing.assert_close(logits.detach(), leaf.grad, check_stride=False)


def spread_out(dense, strides):
    """``dense`` with such strides: memory that nobody touches is none."""
    torch.use_deterministic_algorithms(False)  # which would fill the gaps
    x = torch.empty_strided(dense.shape, strides, dtype=dense.dtype, device=dense.device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return x.copy_(dense)


def test_break_17_a_column_of_targets_need_not_be_contiguous(device):
    """Also pytorch 67167: on CUDA a strided target gave silently wrong losses."""
    logits = torch.randn(6, 10, 4, device=device)
    target = torch.randint(10, (4, 6), device=device).t()
    assert_cross_entropy_agrees(logits, target)
    assert_cross_entropy_agrees(logits[..., 3], target[:, 3])
    assert_cross_entropy_agrees(logits[:1].expand_as(logits), target[:1].expand_as(target))


def test_break_17_pointers_need_not_be_aligned(device):
    # the second call, one element further, must not reuse the 16-byte loads of the first
    logits = torch.randn(4 * 16 + 1, device=device)
    target = torch.randint(16, (5,), device=device)
    for start in (0, 1):
        shifted = logits[start : start + 64].view(4, 16)
        assert_cross_entropy_agrees(shifted, target[start : start + 4])
        assert_agrees(*SOFTMAX, shifted)


@needs_gpus(2)
@each_operator
def test_break_17_the_tensors_device_need_not_be_the_current_one(ours, theirs):
    logits = torch.randn(4, 10, device="cuda:1")
    with torch.cuda.device(0):
        assert_agrees(ours, theirs, logits)


# one above the limit of one other library, two that another one refuses
@pytest.mark.parametrize("n_cols", [65_537, 10, 50_257])
@each_operator
def test_break_20_any_number_of_columns_is_taken(ours, theirs, n_cols, device):
    assert_agrees(ours, theirs, torch.randn(1, n_cols, device=device))
