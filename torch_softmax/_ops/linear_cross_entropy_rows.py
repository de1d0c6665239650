"""Linear cross-entropy of each row with its statistics: operators and autograd, in chunks.

The backward pass computes the logits of each chunk again, since the gradients that arrive differ
from row to row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import reference
from torch_softmax._layout import RowOutputs, empty_row_outputs, enabled_outputs
from torch_softmax._ops.cross_entropy import cross_entropy_backward_inplace, cross_entropy_forward
from torch_softmax._ops.linear_chunks import HeadGradients, LinearHead, chunks, empty_gradients
from torch_softmax._ops.linear_rows import classes_last, dense_logits, placeholder_logits, rows_of
from torch_softmax._ops.registration import needs_differentiable_backward, register_composed

_ARGUMENTS = (
    "Tensor x, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? class_weight,"
    " Tensor? ignored, float logit_scale, float? softcap, ScalarType logits_dtype,"
    " SymInt? chunk_size"
)


def _rows(
    x: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    class_weight: Tensor | None,
    ignored: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    logits_dtype: torch.dtype,
    chunk_size: int | None,
    with_entropy: bool,
) -> RowOutputs:
    head = LinearHead(x, linear_weight, linear_bias, logits_dtype)
    outputs = empty_row_outputs(
        placeholder_logits(head, target), target, class_weight, with_entropy
    )
    for y in outputs:
        y.fill_(-1 if y is outputs.prediction else 0)
    wanted = enabled_outputs(target, class_weight, with_entropy)
    for chunk in chunks(head, rows_of(ignored), chunk_size)[1]:
        logits = classes_last(chunk.logits, target)
        part = cross_entropy_forward(
            logits, target[chunk.rows], class_weight, logit_scale, softcap, with_entropy
        )
        for y, of_chunk, is_wanted in zip(outputs, part, wanted, strict=True):
            if is_wanted:
                y[chunk.rows] = of_chunk
    if ignored is not None:
        _clear(outputs, ignored)
    return outputs


def _clear(outputs: RowOutputs, ignored: Tensor) -> None:
    """Rows that are ignored among losses of one row of ``x``, or that a chunk did not leave out."""
    for y in outputs:
        if y.shape == ignored.shape and y is not outputs.softmax_stats:
            y.masked_fill_(ignored, -1 if y is outputs.prediction else 0)


def _gradients(
    x: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    class_weight: Tensor | None,
    ignored: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    logits_dtype: torch.dtype,
    chunk_size: int | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    head = LinearHead(x, linear_weight, linear_bias, logits_dtype)
    n_chunks, each_chunk = chunks(head, rows_of(ignored), chunk_size)
    gradients = HeadGradients(head, needed, n_chunks)
    for chunk in each_chunk:
        coefficients = (y if y is None else y[chunk.rows] for y in (softmax_stats, a, b, s, e))
        cross_entropy_backward_inplace(
            classes_last(chunk.logits, target),
            target[chunk.rows],
            class_weight,
            *coefficients,
            logit_scale,
            softcap,
        )
        gradients.add(chunk, chunk.logits)
    return gradients.rounded()


def _empty_rows(x: Tensor, linear_weight: Tensor, target: Tensor, *args: Any) -> RowOutputs:
    linear_bias, class_weight, logits_dtype, with_entropy = args[0], args[1], args[5], args[7]
    head = LinearHead(x, linear_weight, linear_bias, logits_dtype)
    return empty_row_outputs(placeholder_logits(head, target), target, class_weight, with_entropy)


linear_cross_entropy_forward = register_composed(
    f"linear_cross_entropy_forward({_ARGUMENTS}, bool with_entropy)"
    " -> (Tensor nll, Tensor smooth, Tensor target_weight, Tensor lse,"
    " Tensor entropy, Tensor prediction, Tensor softmax_stats)",
    _rows,
    _empty_rows,
)
linear_cross_entropy_backward = register_composed(
    f"linear_cross_entropy_backward({_ARGUMENTS}, Tensor softmax_stats, Tensor a, Tensor b,"
    " Tensor? s, Tensor? e, bool[] needed)"
    " -> (Tensor dx, Tensor dlinear_weight, Tensor dlinear_bias)",
    _gradients,
    lambda x, weight, _, bias, *args: empty_gradients(
        LinearHead(x, weight, bias, x.dtype), args[-1]
    ),
)


def linear_cross_entropy_rows(
    head: LinearHead,
    ignored: Tensor | None,
    chunk_size: int | None,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> RowOutputs:
    """Losses and statistics of rows, differentiable in the head's tensors."""
    tensors = (head.x, head.weight, target, head.bias, class_weight, ignored)
    settings = (logit_scale, softcap, head.logits_dtype, chunk_size)
    return RowOutputs(*LinearCrossEntropyRowsFunction.apply(*tensors, settings, with_entropy))


class LinearCrossEntropyRowsFunction(Function):
    """Losses and statistics of rows of a linear head, whose logits the backward forms again."""

    # without setup_context, for which PyTorch inspects signatures at each call: 25 us
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        class_weight: Tensor | None,
        ignored: Tensor | None,
        settings: tuple[Any, ...],
        with_entropy: bool,
    ) -> tuple[Tensor, ...]:
        tensors = (x, linear_weight, target, linear_bias, class_weight, ignored)
        rows = RowOutputs(*linear_cross_entropy_forward(*tensors, *settings, with_entropy))
        ctx.settings, ctx.with_entropy = settings, with_entropy
        ctx.mark_non_differentiable(rows.prediction, rows.softmax_stats)
        # a number that nobody used has no gradient, and its term is left out
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, rows.target_weight, rows.entropy, rows.softmax_stats)
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, target_weight, entropy, softmax_stats = ctx.saved_tensors
        needed = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        if needs_differentiable_backward(*arriving):
            gradients = _differentiable_gradients(ctx, tensors, needed, arriving)
        else:
            numbers = (target_weight, entropy, softmax_stats)
            coefficients = _coefficients(ctx, tensors, numbers, arriving)
            gradients = linear_cross_entropy_backward(
                *tensors, *ctx.settings, softmax_stats, *coefficients, needed
            )
        dx, dweight, dbias = (
            y if is_needed else None for y, is_needed in zip(gradients, needed, strict=True)
        )
        return dx, dweight, None, dbias, None, None, None, None


def _coefficients(
    ctx: Any,
    tensors: list[Any],
    numbers: tuple[Tensor, Tensor, Tensor],
    arriving: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """``a``, ``b``, ``s`` and ``e`` of ``reference.cross_entropy_backward``."""
    _, _, target, _, class_weight, ignored = tensors
    target_weight, entropy, softmax_stats = numbers
    # while tracing, torch.compile passes zeros for what nobody used, also for what is empty
    wanted = enabled_outputs(target, class_weight, ctx.with_entropy)
    dnll, dsmooth, _, dlse, dentropy, _, _ = (
        gradient if want else None for gradient, want in zip(arriving, wanted, strict=True)
    )
    b = torch.zeros_like(softmax_stats[..., 0]) if dnll is None else dnll
    a = b * target_weight if target.is_floating_point() else b
    if dsmooth is not None:
        a = a + dsmooth * class_weight.sum()
    if dlse is not None:
        a = a + dlse
    if dentropy is not None:
        a = a - dentropy * entropy
    rows = (a, b, dsmooth, dentropy)
    if ignored is None:
        return rows
    # the numbers of an ignored row are constants
    return tuple(y if y is None else y.masked_fill(ignored, 0) for y in rows)


def _differentiable_gradients(
    ctx: Any, tensors: list[Any], needed: list[bool], arriving: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    logit_scale, softcap, logits_dtype, _ = ctx.settings
    with torch.enable_grad():
        # aliases, since one may be a function of another, and the derivatives here are partial
        inputs: list[Any] = [y if y is None else y.view_as(y) for y in tensors]
        x, weight, target, bias, class_weight, ignored = inputs
        logits = dense_logits(LinearHead(x, weight, bias, logits_dtype), target, ignored)
        rows = reference.cross_entropy_forward(
            logits, target, class_weight, logit_scale, softcap, ctx.with_entropy
        )
    used = [(rows[i], y) for i, y in enumerate(arriving) if y is not None]
    results: list[Tensor | None] = [None] * 3
    places = [i for i in range(3) if needed[i]]
    derivatives = torch.autograd.grad(
        [y for y, _ in used],
        [(x, weight, bias)[i] for i in places],
        # the numbers of an ignored row are constants
        [dy if ignored is None else dy.masked_fill(ignored, 0) for _, dy in used],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
        materialize_grads=True,
    )
    for i, derivative in zip(places, derivatives, strict=True):
        results[i] = derivative
    return results
