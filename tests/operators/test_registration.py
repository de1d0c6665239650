"""The registered operators, called directly: opcheck, agreement with the reference, bounds."""

import pytest
import torch

from linear_heads import linear_operator_arguments
from torch_softmax import reference

OPERATORS = torch.ops.torch_softmax


def operator_arguments(device):
    """Arguments for every registered operator, with the class axis where it is not contiguous."""
    x = torch.randn(2, 5, 3, device=device).transpose(1, 2)
    y = torch.softmax(x, -1)
    target = torch.randint(5, x.shape[:-1], device=device)
    weight = torch.rand(5, device=device)
    rows = torch.rand(x.shape[:-1], device=device)
    plain, capped = (1.0, None), (1.5, 2.0)
    total = torch.tensor(7.0, device=device)
    mean = (-100, "mean", 0.0, 0.0, None, 1.0)
    factor = torch.tensor(2.0, device=device)
    every_option = (2, "sum", 0.1, 0.01, 2.0, 1.5)
    softmax_stats = reference.cross_entropy_forward(x, target, None)[-1]
    indices = (x, target, weight, softmax_stats, rows, rows, rows, rows)
    shares = (x, y, weight, *indices[3:])
    return {
        "softmax_forward": [(x, -1, torch.float32), (x.bfloat16(), 1, torch.float64)],
        "softmax_backward": [
            (x, y, 0, torch.float32),
            (x[:, ::2, :1], y[:, ::2, :1], -1, torch.float16),
        ],
        "log_softmax_forward": [(x, -1, torch.float32)],
        "log_softmax_backward": [(x, y, 1, torch.float32)],
        "cross_entropy_forward": [
            (x, target, None, *plain, False),
            (x, target, weight, *capped, True),
            (x.half(), y, None, *plain, False),
            (x, y, weight, *capped, True),
        ],
        "cross_entropy_backward": [
            (x, target, None, *indices[3:6], None, None, *plain),
            (*indices, *capped),
            (x, y, None, *shares[3:6], None, None, *plain),
            (*shares, *capped),
        ],
        "cross_entropy_backward_inplace": [(x.clone(), *indices[1:], *capped)],
        "cross_entropy_loss": [
            (x, target, None, None, torch.float32, True),
            (x.double(), target.int(), weight, None, torch.float64, True, *every_option),
            (x.bfloat16(), y, weight, None, torch.float32, True, *every_option),
            (x.half(), target, weight, total, torch.float16, False, *mean),
        ],
        "cross_entropy_loss_inplace": [
            (x.clone(), target, weight, None, torch.float32, *every_option),
            (x.clone(), y, None, total, torch.float32, *mean),
        ],
        "scale": [(x, factor, []), (x, factor, [x.clone(), target])],
        "scale_inplace": [(x.clone(), factor)],
    }


@pytest.mark.parametrize("name", operator_arguments("cpu") | linear_operator_arguments("cpu"))
def test_opcheck_finds_no_fault_in_the_registration(name, device):
    samples = operator_arguments(device) | linear_operator_arguments(device)
    for arguments in samples[name]:
        torch.library.opcheck(getattr(OPERATORS, name).default, arguments)


def test_opcheck_finds_no_fault_with_an_incoming_gradient(device):
    tensors = torch.randn(2, 4, 5, device=device), torch.ones(2, 4, dtype=torch.long, device=device)
    dloss = torch.tensor(0.5, device=device)
    of_rows = {"reduction": "none", "dloss": torch.rand(2, 4, device=device)}
    for name in ("cross_entropy_loss", "cross_entropy_loss_inplace"):
        for keywords in ({"dloss": dloss}, of_rows):
            torch.library.opcheck(getattr(OPERATORS, name).default, tensors, keywords)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_opcheck_finds_no_fault_with_no_rows(shape, device):
    x = torch.randn(shape, device=device)
    target = torch.zeros(shape[:-1], dtype=torch.long, device=device)
    keywords = {"reduction": "sum"}
    torch.library.opcheck(OPERATORS.cross_entropy_loss.default, (x, target), keywords)
    forward = (x, target, None, 1.0, None, True)
    torch.library.opcheck(OPERATORS.cross_entropy_forward.default, forward)


def test_operator_refuses_a_denominator_of_losses_per_row(device):
    tensors = torch.randn(4, 5, device=device), torch.ones(4, dtype=torch.long, device=device)
    denominator = torch.ones((), device=device)
    with pytest.raises(ValueError, match="needs denominator=None for reduction='none'"):
        OPERATORS.cross_entropy_loss(*tensors, None, denominator, reduction="none")


def test_operator_takes_an_incoming_gradient_of_one_element(device):
    tensors = torch.randn(4, 5, device=device), torch.ones(4, dtype=torch.long, device=device)
    _, expected = OPERATORS.cross_entropy_loss(*tensors)
    dloss = torch.full((1,), 2.0, device=device)
    _, dlogits = OPERATORS.cross_entropy_loss(*tensors, dloss=dloss)
    torch.testing.assert_close(dlogits, 2 * expected)
    _, expected = OPERATORS.cross_entropy_loss(*tensors, reduction="none")
    _, dlogits = OPERATORS.cross_entropy_loss(*tensors, reduction="none", dloss=dloss.sum())
    torch.testing.assert_close(dlogits, 2 * expected)


def test_operator_refuses_an_incoming_gradient_that_needs_a_derivative(device):
    tensors = torch.randn(4, 5, device=device), torch.ones(4, dtype=torch.long, device=device)
    dloss = torch.ones((), device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no derivative of its own"):
        OPERATORS.cross_entropy_loss(*tensors, dloss=dloss)


def test_opcheck_covers_every_operator():
    registered = {
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torch_softmax::")
    }
    # registered with torch_softmax.distributed, which another test of this process may import
    registered = {name for name in registered if not name.startswith("vocab_shard_")}
    samples = operator_arguments("cpu") | linear_operator_arguments("cpu")
    assert registered == set(samples)


def test_reference_defines_what_the_kernels_compute(kernel_device):
    samples = operator_arguments(kernel_device)
    for arguments in samples.pop("cross_entropy_backward_inplace"):
        expected = reference.cross_entropy_backward(*arguments)
        OPERATORS.cross_entropy_backward_inplace(*arguments)
        torch.testing.assert_close(arguments[0], expected, check_stride=False)
    for arguments in samples.pop("cross_entropy_loss_inplace"):
        tensors_and_dtype, options = arguments[:5], arguments[5:]
        expected, dlogits = reference.cross_entropy_loss(*tensors_and_dtype, True, *options)
        loss = OPERATORS.cross_entropy_loss_inplace(*arguments)
        torch.testing.assert_close([loss, arguments[0]], [expected, dlogits], check_stride=False)
    for x, factor, inputs in samples.pop("scale"):
        assert torch.equal(OPERATORS.scale(x, factor, inputs), x * factor)
    for x, factor in samples.pop("scale_inplace"):
        expected = x * factor
        OPERATORS.scale_inplace(x, factor)
        assert torch.equal(x, expected)
    for name in samples:
        for arguments in samples[name]:
            torch.testing.assert_close(
                getattr(OPERATORS, name)(*arguments),
                getattr(reference, name)(*arguments),
                check_stride=False,
            )


# longer than a tile of these small tensors, so a store without its mask ends in the margin
MARGIN = 4096
CANARY = 77
NAMES = tuple(operator_arguments("cpu"))


@pytest.fixture
def margins(monkeypatch):
    """Let results lie between margins, and return those."""
    buffers = []

    def between_margins(allocate):
        def allocate_between_margins(*args, **kwargs):
            plain = allocate(*args, **kwargs)
            size = plain.untyped_storage().nbytes() // plain.element_size()
            buffer = torch.full(
                (size + 2 * MARGIN,), CANARY, dtype=plain.dtype, device=plain.device
            )
            buffers.append(buffer)
            return buffer.as_strided(plain.size(), plain.stride(), MARGIN)

        return allocate_between_margins

    monkeypatch.setattr(torch, "empty", between_margins(torch.empty))
    monkeypatch.setattr(torch, "empty_like", between_margins(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", between_margins(torch.Tensor.new_empty))
    return buffers


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("inplace")])
def test_kernels_write_nothing_outside_their_results(name, kernel_device, margins):
    for arguments in operator_arguments(kernel_device)[name]:
        getattr(OPERATORS, name)(*arguments)
    for buffer in margins:
        assert (buffer[:MARGIN] == CANARY).all() and (buffer[-MARGIN:] == CANARY).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("inplace")])
def test_kernels_overwrite_nothing_outside_their_rows(name, kernel_device):
    for x, *others in operator_arguments(kernel_device)[name]:
        buffer = torch.full((40, 50, 90), float(CANARY), device=kernel_device)
        inside = buffer[20:22, 20:23, 40:45]
        inside.copy_(x)
        getattr(OPERATORS, name)(inside, *others)
        assert not torch.equal(inside, x)
        inside.fill_(CANARY)
        assert (buffer == CANARY).all()
