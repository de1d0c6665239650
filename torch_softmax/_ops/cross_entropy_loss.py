"""One number from the losses of all rows: their gradient is formed in the pass that computes them.

A sum or mean over rows has a gradient that is known up to one factor when the rows are read, so it
is written then, and the logits are not read again. Where that cannot be, because more than one
gradient or another kind of derivative is asked for, the loss is composed of what
:func:`softmax_cross_entropy` returns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import _cpu
from torch_softmax._layout import (
    RowOutputs,
    empty_row_outputs,
    empty_rows_like,
    has_dense_storage,
    with_collapsible_batch_dims,
)
from torch_softmax._ops.cross_entropy import softmax_cross_entropy
from torch_softmax._ops.loss_terms import loss_terms
from torch_softmax._ops.registration import (
    is_eager,
    launcher,
    register,
    takes_cpu_path,
    takes_kernels,
)
from torch_softmax._options import LossOptions


def _empty_losses(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows = empty_row_outputs(logits, target, class_weight, with_entropy=False)
    return rows.nll, rows.smooth, rows.lse


cross_entropy_step = register(
    "cross_entropy_step(Tensor logits, Tensor target, Tensor? class_weight,"
    " Tensor b, Tensor? s, Tensor? z, float logit_scale, float? softcap)"
    " -> (Tensor nll, Tensor smooth, Tensor lse, Tensor dlogits)",
    lambda logits, *args: (*_empty_losses(logits, *args), empty_rows_like(logits, logits.dtype)),
)
cross_entropy_step_inplace = register(
    "cross_entropy_step_inplace(Tensor(a!) logits, Tensor target, Tensor? class_weight,"
    " Tensor b, Tensor? s, Tensor? z, float logit_scale, float? softcap)"
    " -> (Tensor nll, Tensor smooth, Tensor lse)",
    _empty_losses,
)
scale_inplace = register("scale_inplace(Tensor(a!) x, Tensor factor) -> ()", lambda x, factor: None)


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    inplace: bool,
) -> Tensor:
    """The losses of rows in ``dtype``, reduced as the options say; differentiable."""
    args = (logits, target, weight, options, dtype)
    of_others = target.requires_grad or (weight is not None and weight.requires_grad)
    wants_gradient = torch.is_grad_enabled() and (logits.requires_grad or of_others)
    is_one_number = options.reduction != "none" and is_eager()
    # float16 would lose small gradients before a loss scaler's factor lifts them
    if is_one_number and wants_gradient and not of_others and logits.dtype != torch.float16:
        logits = logits if inplace else with_collapsible_batch_dims(logits)
        loss: Tensor = CrossEntropyLossFunction.apply(logits, *args[1:], inplace)
        return loss
    fused_loss = _fused_loss(*args[:-1]) if is_one_number and not wants_gradient else None
    if fused_loss:
        return fused_loss(*args, dlogits=None)
    return composed_loss(*args, inplace=inplace)[0]


def composed_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    with_entropy: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, RowOutputs]:
    """The loss as a function of the numbers of its rows, and these numbers."""
    target, class_weight, terms = loss_terms(logits, target, weight, options)
    rows = softmax_cross_entropy(
        logits,
        target,
        class_weight,
        options.logit_scale,
        options.softcap,
        with_entropy=with_entropy,
        inplace=inplace,
    )
    reduce = terms.of_rows if options.reduction == "none" else terms.of_all
    return reduce(rows.nll, rows.smooth, rows.lse).to(dtype), rows


class CrossEntropyLossFunction(Function):
    """The loss of all rows with the gradient formed beside it, for plain reverse mode.

    ``apply(logits, target, weight, options, dtype, inplace)``. The first backward hands the
    gradient out, so that nothing holds its memory; a further one forms it again, and second
    derivatives are those of the composed loss.
    """

    # PyTorch inspects the signatures of a Function with setup_context at each call: 25 us
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: LossOptions,
        dtype: torch.dtype,
        inplace: bool,
    ) -> Tensor:
        ctx.save_for_backward(logits, target, weight)
        ctx.options, ctx.dtype, ctx.inplace = options, dtype, inplace
        loss, ctx.dlogits = _loss_and_gradient(logits, target, weight, options, dtype, inplace)
        if inplace:
            # whoever saved the logits for its own backward must not take the gradient for them
            torch.autograd.graph.increment_version(logits)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, dloss), None, None, None, None, None


def _loss_and_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    fused_loss = _fused_loss(logits, target, weight, options)
    if fused_loss:
        dlogits = logits.detach() if inplace else _empty_gradient(logits)
        return fused_loss(logits, target, weight, options, dtype, dlogits), dlogits
    target, class_weight, terms = loss_terms(logits, target, weight, options)
    coefficients = (*terms.coefficients(logits), options.logit_scale, options.softcap)
    if inplace:
        rows = cross_entropy_step_inplace(logits, target, class_weight, *coefficients)
        return terms.of_all(*rows).to(dtype), logits.detach()
    *rows, dlogits = cross_entropy_step(logits, target, class_weight, *coefficients)
    return terms.of_all(*rows).to(dtype), dlogits


def _fused_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
) -> Callable[..., Tensor] | None:
    """What reads the logits once and returns the loss itself, where there is such code."""
    if takes_cpu_path(logits):
        has_loss = _cpu.has_compiled_loss(logits, target, weight, options)
        return _cpu.compiled_loss if has_loss else None
    tensors = [logits, target] if weight is None else [logits, target, weight]
    if (
        not takes_kernels(logits)
        or target.is_floating_point()
        or logits.numel() == 0
        or not all(map(has_dense_storage, tensors))
    ):
        return None
    return launcher("cross_entropy_loss")


def _empty_gradient(logits: Tensor) -> Tensor:
    if takes_cpu_path(logits):
        return _cpu.empty_result_like(logits, logits.dtype)
    return empty_rows_like(logits, logits.dtype)


def _gradient(ctx: Any, dloss: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return _differentiable_gradient(ctx, dloss)
    dlogits: Tensor = _formed_again(ctx) if ctx.dlogits is None else ctx.dlogits
    if not is_eager() or torch._C._functorch.is_legacy_batchedtensor(dloss):
        # one backward for a batch of gradients
        return dlogits * dloss
    ctx.dlogits = None
    scale = _cpu.scale_inplace if takes_cpu_path(dlogits) else scale_inplace
    scale(dlogits, dloss)
    return dlogits


def _formed_again(ctx: Any) -> Tensor:
    if ctx.inplace:
        raise RuntimeError(
            "cross_entropy needs inplace=False for a second backward: the logits have been "
            "modified by an inplace operation, which made them their gradient"
        )
    logits, target, weight = ctx.saved_tensors
    args = (ctx.options, ctx.dtype)
    return _loss_and_gradient(logits, target, weight, *args, inplace=False)[1]


def _differentiable_gradient(ctx: Any, dloss: Tensor) -> Tensor:
    if ctx.inplace:
        raise RuntimeError("cross_entropy needs inplace=False for second derivatives, got True")
    logits, target, weight = ctx.saved_tensors
    loss, _ = composed_loss(logits, target, weight, ctx.options, ctx.dtype)
    (dlogits,) = torch.autograd.grad(loss, logits, dloss, create_graph=True)
    return dlogits
