"""Registered operators of a linear head whose classes are sharded: the part of one rank, in chunks.

The gradient of the input is ready before that of the weight: the last chunk's product for the
weight is an operator of its own, which runs while the ranks sum the gradient of the input.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_softmax._ops.cross_entropy import cross_entropy_backward_inplace
from torch_softmax._ops.linear_chunks import (
    HeadGradients,
    LinearHead,
    chunks,
    empty_gradients,
    multiply_and_add,
)
from torch_softmax._ops.linear_cross_entropy_rows import linear_cross_entropy_forward
from torch_softmax._ops.linear_rows import classes_last, placeholder_logits, rows_of
from torch_softmax._ops.registration import register_composed
from torch_softmax.distributed.shard_operators import (
    empty_packed,
    local_target,
    operator_weight,
    packed_outputs,
)


class HeadOptions(NamedTuple):
    """How the logits of a head are computed."""

    logit_scale: float
    softcap: float | None
    logits_dtype: torch.dtype
    chunk_size: int | None


_HEAD = (
    "Tensor x, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight,"
    " Tensor? ignored, SymInt first_class, float logit_scale, float? softcap,"
    " ScalarType logits_dtype, SymInt? chunk_size"
)


def _forward(
    x: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignored: Tensor | None,
    first_class: int,
    *args: Any,
) -> Tensor:
    *options, with_smoothing = args
    logit_scale, softcap, logits_dtype, chunk_size = options

    def row_forward(local: Tensor, class_weight: Tensor | None) -> Any:
        operands = (x, linear_weight, local, linear_bias, class_weight, ignored)
        settings = (logit_scale, softcap, logits_dtype, chunk_size)
        return linear_cross_entropy_forward(*operands, *settings, False)

    head = LinearHead(x, linear_weight, linear_bias, logits_dtype)
    logits = placeholder_logits(head, target)
    return packed_outputs(row_forward, logits, target, weight, first_class, with_smoothing, False)


def _empty_forward(
    x: Tensor, linear_weight: Tensor, bias: Tensor | None, target: Tensor, *args: Any
) -> Tensor:
    weight, logits_dtype, with_smoothing = args[0], args[-3], args[-1]
    head = LinearHead(x, linear_weight, bias, logits_dtype)
    return empty_packed(placeholder_logits(head, target), target, weight, with_smoothing, False)


def _backward_input(
    x: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignored: Tensor | None,
    first_class: int,
    logit_scale: float,
    softcap: float | None,
    logits_dtype: torch.dtype,
    chunk_size: int | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, and the sums for weight and bias without the last chunk, whose operands follow."""
    head = LinearHead(x, linear_weight, linear_bias, logits_dtype)
    if not len(linear_weight):
        gradients = HeadGradients(head, needed, 1)
        no_x, no_dlogits = x.new_empty(0, x.shape[1]), x.new_empty(0, 0, dtype=logits_dtype)
        return gradients.x, gradients.weight, gradients.bias, no_x, no_dlogits
    logits = placeholder_logits(head, target)
    class_weight = operator_weight(logits, target, weight, s is not None)
    if not target.is_floating_point():
        target, is_local = local_target(target, first_class, logits.shape[-1])
        # another rank subtracts the one-hot
        b = b.masked_fill(~is_local, 0)
    n_chunks, each_chunk = chunks(head, rows_of(ignored), chunk_size)
    of_input = HeadGradients(head, [needed[0], False, False], n_chunks)
    of_head = HeadGradients(head, [False, *needed[1:]], n_chunks)
    last_x, last_dlogits = x[:0].clone(), x.new_empty(0, len(linear_weight), dtype=logits_dtype)
    for i, chunk in enumerate(each_chunk):
        rows = (y if y is None else y[chunk.rows] for y in (softmax_stats, a, b, s))
        cross_entropy_backward_inplace(
            classes_last(chunk.logits, target),
            *(target[chunk.rows], class_weight),
            *(*rows, None, logit_scale, softcap),
        )
        of_input.add(chunk, chunk.logits)
        if i + 1 < n_chunks:
            of_head.add(chunk, chunk.logits)
        else:
            # a copy, because the result of an operator is no view of its input
            last_x, last_dlogits = chunk.x.clone(), chunk.logits
    return of_input.x, of_head.weight, of_head.bias, last_x, last_dlogits


def _backward_head(
    x: Tensor, dlogits: Tensor, weight_sum: Tensor, bias_sum: Tensor, needed: list[bool]
) -> None:
    """Add the last chunk's products."""
    if needed[2]:
        bias_sum += dlogits.sum(0, dtype=bias_sum.dtype)
    if needed[1]:
        multiply_and_add(dlogits.to(x.dtype).t(), x, weight_sum)


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    linear_weight, needed = args[1], args[-1]
    dx, weight_sum, bias_sum, last_x, last_dlogits = _backward_input(*args)
    _backward_head(last_x, last_dlogits, weight_sum, bias_sum, needed)
    return dx, weight_sum.to(linear_weight.dtype), bias_sum.to(linear_weight.dtype)


def _empty_backward_input(
    x: Tensor, linear_weight: Tensor, bias: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    logits_dtype, needed = args[-7], args[-1]
    dx, dweight, dbias = empty_gradients(LinearHead(x, linear_weight, bias, x.dtype), needed)
    # chunks leave out ignored rows, which depend on the targets
    n_rows = torch.library.get_ctx().new_dynamic_size()
    last_dlogits = x.new_empty(n_rows, len(linear_weight), dtype=logits_dtype)
    return dx, dweight, dbias, x.new_empty(n_rows, x.shape[1]), last_dlogits


_BACKWARD = f"{_HEAD}, Tensor softmax_stats, Tensor a, Tensor b, Tensor? s, bool[] needed"
linear_shard_forward = register_composed(
    f"vocab_shard_linear_forward({_HEAD}, bool with_smoothing) -> Tensor", _forward, _empty_forward
)
# under torch.compile: the rows of the last chunk depend on the targets
linear_shard_backward = register_composed(
    f"vocab_shard_linear_backward({_BACKWARD})"
    " -> (Tensor dx, Tensor dlinear_weight, Tensor dlinear_bias)",
    _backward,
    lambda x, weight, bias, *args: empty_gradients(LinearHead(x, weight, bias, x.dtype), args[-1]),
)
linear_shard_backward_input = register_composed(
    f"vocab_shard_linear_backward_input({_BACKWARD}) -> (Tensor dx, Tensor weight_sum,"
    " Tensor bias_sum, Tensor last_x, Tensor last_dlogits)",
    _backward_input,
    _empty_backward_input,
)
linear_shard_backward_head = register_composed(
    "vocab_shard_linear_backward_head(Tensor last_x, Tensor last_dlogits, Tensor(a!) weight_sum,"
    " Tensor(b!) bias_sum, bool[] needed) -> ()",
    _backward_head,
    lambda *_: None,
)
