import pytest
import torch
from test_registration import OPERATORS, operator_arguments

# longer than a tile of these small tensors, so that a store without its mask ends in it
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
    return buffers


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("inplace")])
def test_kernels_write_nothing_beside_their_results(name, kernel_device, margins):
    for arguments in operator_arguments(kernel_device)[name]:
        getattr(OPERATORS, name)(*arguments)
    for buffer in margins:
        assert (buffer[:MARGIN] == CANARY).all() and (buffer[-MARGIN:] == CANARY).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("inplace")])
def test_kernels_overwrite_nothing_beside_their_rows(name, kernel_device):
    for x, *others in operator_arguments(kernel_device)[name]:
        buffer = torch.full((40, 50, 90), float(CANARY), device=kernel_device)
        inside = buffer[20:22, 20:23, 40:45]
        inside.copy_(x)
        getattr(OPERATORS, name)(inside, *others)
        assert not torch.equal(inside, x)
        inside.fill_(CANARY)
        assert (buffer == CANARY).all()
