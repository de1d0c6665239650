"""Linear cross-entropy: one number and its gradients, without a matrix of all logits.

The gradients of a sum or mean are known up to one factor when the logits of a chunk are there, so
the pass that computes the loss forms them too. What this does not carry, higher derivatives and
transforms, takes all logits at once, by :mod:`torch_softmax.reference`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import reference
from torch_softmax._layout import RowOutputs, compute_dtype
from torch_softmax._ops.cross_entropy_loss import (
    cross_entropy_loss,
    cross_entropy_loss_inplace,
    cross_entropy_loss_operator,
    cross_entropy_with_rows,
)
from torch_softmax._ops.linear_chunks import HeadGradients, LinearHead, chunks, empty_gradients
from torch_softmax._ops.linear_cross_entropy_rows import linear_cross_entropy_rows
from torch_softmax._ops.linear_rows import (
    classes_last,
    dense_logits,
    placeholder_logits,
    rows_of,
)
from torch_softmax._ops.registration import (
    needs_differentiable_backward,
    register_composed,
    takes_functions,
)
from torch_softmax._ops.scale import scaled_gradient
from torch_softmax._options import LossOptions, Reduction


def _empty_loss(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    weight, bias, needed = args[0], args[2], args[-1]
    loss = x.new_empty((), dtype=args[-4])
    return loss, *empty_gradients(LinearHead(x, weight, bias, x.dtype), needed)


def _loss_and_gradients(
    x: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    denominator: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    dtype: torch.dtype,
    logits_dtype: torch.dtype,
    chunk_size: int | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    head = LinearHead(x, linear_weight, linear_bias, logits_dtype)
    options = LossOptions(ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
    if reduction == "mean" and denominator is None:
        stand_in = placeholder_logits(head, target)
        _, _, terms = reference.loss_terms(stand_in, target, weight, None, options)
        denominator = torch.as_tensor(terms.denominator, device=x.device)
    ignored = rows_of(reference.ignored_mask(target, ignore_index))
    n_chunks, each_chunk = chunks(head, ignored, chunk_size)
    gradients = HeadGradients(head, needed, n_chunks)
    loss = x.new_zeros((), dtype=compute_dtype(logits_dtype))
    if not n_chunks and denominator is not None:
        # the mean of no row
        loss = loss / denominator
    for chunk in each_chunk:
        logits = classes_last(chunk.logits, target)
        args = (logits, target[chunk.rows], weight, denominator, loss.dtype)
        if any(needed):
            loss += cross_entropy_loss_inplace(*args, *options)
            gradients.add(chunk, chunk.logits)
        else:
            loss += cross_entropy_loss_operator(*args, False, *options)[0]
    return loss.to(dtype), *gradients.rounded()


linear_cross_entropy_loss_operator = register_composed(
    "linear_cross_entropy_loss(Tensor x, Tensor linear_weight, Tensor target, Tensor? linear_bias,"
    " Tensor? weight, Tensor? denominator, int ignore_index, str reduction, float label_smoothing,"
    " float z_loss, float? softcap, float logit_scale, ScalarType dtype, ScalarType logits_dtype,"
    " SymInt? chunk_size, bool[] needed)"
    " -> (Tensor loss, Tensor dx, Tensor dlinear_weight, Tensor dlinear_bias)",
    _loss_and_gradients,
    _empty_loss,
)


def linear_cross_entropy_loss(
    head: LinearHead,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    chunk_size: int | None,
) -> Tensor:
    """The loss of all rows of a head in ``dtype``, as the options say; differentiable."""
    args = (target, weight, denominator, options, dtype)
    if not _takes_chunks(head, target, weight, denominator):
        ignored = reference.ignored_mask(target, options.ignore_index)
        return cross_entropy_loss(dense_logits(head, target, ignored), *args, False)
    denominator_needs = denominator is not None and denominator.requires_grad
    # float16 would lose small gradients before a loss scaler's factor lifts them
    if options.reduction == "none" or head.x.dtype == torch.float16 or denominator_needs:
        return linear_cross_entropy_with_rows(head, *args, chunk_size, False)[0]
    tensors = (head.x, head.weight, target, head.bias, weight, denominator)
    if torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in tensors):
        loss: Tensor = LinearCrossEntropyFunction.apply(
            *tensors, options, dtype, head.logits_dtype, chunk_size
        )
        return loss
    settings = (dtype, head.logits_dtype, chunk_size, [False] * 3)
    return linear_cross_entropy_loss_operator(*tensors, *options, *settings)[0]


def linear_cross_entropy_with_rows(
    head: LinearHead,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    chunk_size: int | None,
    with_entropy: bool,
) -> tuple[Tensor, RowOutputs]:
    """The loss as a function of the numbers of its rows, and these numbers; differentiable.

    The numbers of an ignored row are 0, its prediction is -1.
    """
    ignored = reference.ignored_mask(target, options.ignore_index)
    if not _takes_chunks(head, target, weight, denominator):
        logits = dense_logits(head, target, ignored)
        args = (target, weight, denominator, options, dtype)
        loss, rows = cross_entropy_with_rows(logits, *args, with_entropy, False)
        return loss, rows if ignored is None else _without_ignored(rows, ignored)

    def row_forward(_: Tensor, *row_args: Any) -> RowOutputs:
        return linear_cross_entropy_rows(head, ignored, chunk_size, *row_args)

    logits = placeholder_logits(head, target)
    args = (target, weight, denominator, options, dtype)
    return reference.compose_loss(row_forward, logits, *args, with_entropy)


def _takes_chunks(
    head: LinearHead, target: Tensor, weight: Tensor | None, denominator: Tensor | None
) -> bool:
    """Whether chunks serve: not for gradients of target probabilities and class weights."""
    others_need_gradient = target.requires_grad or (weight is not None and weight.requires_grad)
    if others_need_gradient and torch.is_grad_enabled():
        return False
    return takes_functions(head.x, head.weight, head.bias, target, weight, denominator)


def _without_ignored(rows: RowOutputs, ignored: Tensor) -> RowOutputs:
    def mask(name: str, y: Tensor) -> Tensor:
        if y.shape != ignored.shape:
            return y
        return y.masked_fill(ignored, -1 if name == "prediction" else 0)

    return RowOutputs(*map(mask, RowOutputs._fields, rows))


class LinearCrossEntropyFunction(Function):
    """The loss of all rows of a linear head, with its gradients formed in the forward pass.

    ``apply(x, linear_weight, target, linear_bias, weight, denominator, options, dtype,
    logits_dtype, chunk_size)``, with the arguments of the operator ``linear_cross_entropy_loss``
    and the six options as a tuple; the reduction is "mean" or "sum". Second derivatives are those
    of ``reference``.
    """

    # without setup_context, for which PyTorch inspects signatures at each call: 25 us
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        weight: Tensor | None,
        denominator: Tensor | None,
        options: LossOptions,
        dtype: torch.dtype,
        logits_dtype: torch.dtype,
        chunk_size: int | None,
    ) -> Tensor:
        ctx.options, ctx.dtype, ctx.logits_dtype = options, dtype, logits_dtype
        tensors = (x, linear_weight, target, linear_bias, weight, denominator)
        needed = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        loss, *gradients = linear_cross_entropy_loss_operator(
            *tensors, *options, dtype, logits_dtype, chunk_size, needed
        )
        ctx.save_for_backward(*gradients, *tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad
        needed = [(i, y) for i, y in ((0, dx), (1, dweight), (3, dbias)) if needs[i]]
        results: list[Tensor | None] = [None] * 10
        if not needs_differentiable_backward(dloss):
            inputs = [tensors[i] for i, _ in needed]
            for i, gradient in needed:
                results[i] = scaled_gradient(gradient, dloss, inputs)
        elif not torch.is_grad_enabled():
            # a batch of incoming gradients
            for i, gradient in needed:
                results[i] = gradient * dloss
        else:
            indices = [i for i, _ in needed]
            for i, gradient in zip(indices, _recomputed(ctx, indices, tensors, dloss), strict=True):
                results[i] = gradient
        return tuple(results)


def _recomputed(
    ctx: Any, indices: list[int], tensors: list[Any], dloss: Tensor
) -> tuple[Tensor, ...]:
    # aliases, since one of them may be a function of another, and the derivatives here are partial
    tensors = [y if y is None else y.view_as(y) for y in tensors]
    x, linear_weight, target, bias, weight, denominator = tensors
    ignored = reference.ignored_mask(target, ctx.options.ignore_index)
    logits = dense_logits(LinearHead(x, linear_weight, bias, ctx.logits_dtype), target, ignored)
    args = (target, weight, denominator, ctx.options, ctx.dtype)
    loss, _ = reference.compose_loss(reference.cross_entropy_forward, logits, *args)
    inputs = [tensors[i] for i in indices]
    return torch.autograd.grad(loss, inputs, dloss, create_graph=True)
