"""The registered operators of class shards, called directly."""

import pytest
import torch

import torch_softmax.distributed.linear_shard_operators
import torch_softmax.distributed.shard_operators  # noqa: F401

OPERATORS = torch.ops.torch_softmax


def operator_arguments():
    """Arguments for each of them, of a rank that holds classes 4 to 8."""
    x = torch.randn(6, 5)
    target = torch.tensor([0, 4, 8, 5, 11, 7])
    soft, weight = torch.rand(6, 5), torch.rand(5)
    stats, rows = torch.randn(6, 2), torch.rand(6)
    wide = (stats.double(), rows.double(), rows.double())
    plain, capped = (1.0, None), (1.5, 2.0)
    features, linear_weight, bias = torch.randn(6, 3), torch.randn(5, 3), torch.randn(5)
    indices = (x, target, weight, 4, stats, rows, rows, rows, rows, *capped)
    head = (features, linear_weight, bias, target, weight, target == 5, 4, 1.5, 2.0, torch.float32)
    of_soft = (features, linear_weight, None, soft, None, None, 4, 1.0, None, torch.float32, None)
    every = [True] * 3
    backward = [
        (*head, 4, stats, rows, rows, rows, every),
        (*of_soft, stats, rows, rows, None, [False, True, False]),
    ]
    return {
        "vocab_shard_forward": [
            (x, target, None, 4, False, False, *plain),
            (x, target, weight, 4, True, True, *capped),
            (x[:, :0], target, weight[:0], 4, True, True, *capped),
            (x.bfloat16(), soft, weight, 4, False, False, *plain),
        ],
        "vocab_shard_backward": [
            indices,
            (x[:, :0], target, None, 4, *indices[4:7], None, None, *plain),
            (x.double(), soft.double(), None, 4, *wide, None, None, *plain),
        ],
        "vocab_shard_backward_inplace": [(x.clone(), *indices[1:])],
        "vocab_shard_linear_forward": [(*head, 4, True), (*of_soft, False)],
        "vocab_shard_linear_backward": backward,
        "vocab_shard_linear_backward_input": backward,
        "vocab_shard_linear_backward_head": [
            (features, x, torch.zeros(5, 3), torch.zeros(5), every),
            (features.bfloat16(), x.bfloat16(), torch.zeros(5, 3), torch.zeros(5), every),
        ],
    }


@pytest.mark.parametrize("name", operator_arguments())
def test_opcheck_finds_no_fault_in_the_operators_of_shards(name, device):
    for arguments in operator_arguments()[name]:
        moved = [y.to(device) if isinstance(y, torch.Tensor) else y for y in arguments]
        torch.library.opcheck(getattr(OPERATORS, name).default, moved)


def test_opcheck_covers_every_operator_of_shards():
    registered = {
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torch_softmax::vocab_shard_")
    }
    assert registered == set(operator_arguments())


@pytest.mark.parametrize("n_local", [0, 5])
def test_shard_of_classes_that_a_rank_does_not_hold_has_no_target(n_local, device):
    x = torch.randn(3, n_local, device=device)
    target = torch.tensor([0, 3, 9], device=device)
    packed = OPERATORS.vocab_shard_forward(x, target, None, 4, False, False, 1.0, None)
    row_max, log_sum_exp, nll, target_weight = packed[3:].view(4, 3)
    assert not nll.any() and not target_weight.any()
    torch.testing.assert_close(row_max + log_sum_exp, x.logsumexp(1))
