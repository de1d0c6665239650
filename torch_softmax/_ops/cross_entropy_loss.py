"""One number from the losses of all rows: their gradient is formed in the pass that computes them.

A sum or mean over rows has a gradient that is known up to one factor when the rows are read, so it
is written then, and the logits are not read again. Where that cannot be, because more than one
gradient or another kind of derivative is asked for, the loss is composed of what
:func:`softmax_cross_entropy` returns.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax._ops.cross_entropy import softmax_cross_entropy
from torch_softmax._ops.registration import is_eager, register
from torch_softmax._rows import (
    compute_dtype,
    empty_row_outputs,
    empty_rows_like,
    with_folding_batch,
)


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


class LossTerms(NamedTuple):
    """What a row's numbers count in its loss, and what counts at all.

    The loss of a row is ``nll_factor * row_weight * nll + smooth_factor * smooth + z_loss *
    lse**2``, without ``row_weight`` where that is None, and 0 for a row in the mask ``ignored``. A
    sum of losses is divided by ``denominator``.
    """

    row_weight: Tensor | None
    ignored: Tensor | None
    nll_factor: float
    smooth_factor: float
    z_loss: float
    denominator: Tensor | int | None

    def of_rows(self, nll: Tensor, smooth: Tensor, lse: Tensor) -> Tensor:
        """The loss of each row."""
        loss = nll if self.row_weight is None else self.row_weight * nll
        if self.smooth_factor > 0:
            loss = self.nll_factor * loss + self.smooth_factor * smooth
        if self.z_loss > 0:
            # ignored before it is squared: the derivative of a NaN's square is NaN, not 0
            lse = lse if self.ignored is None else lse.masked_fill(self.ignored, 0)
            loss = loss + self.z_loss * lse.square()
        return loss if self.ignored is None else loss.masked_fill(self.ignored, 0)

    def of_all(self, nll: Tensor, smooth: Tensor, lse: Tensor) -> Tensor:
        """The loss of all rows."""
        loss = self.of_rows(nll, smooth, lse).sum()
        return loss if self.denominator is None else loss / self.denominator

    def coefficients(self, logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Derivatives ``b``, ``s`` and ``z`` of the loss of all in each nll, smooth and lse**2."""
        each = 1 / max(1, self.denominator) if isinstance(self.denominator, int) else 1.0
        share = logits.new_full(logits.shape[:-1], each, dtype=compute_dtype(logits.dtype))
        if isinstance(self.denominator, Tensor):
            share = share / self.denominator
        if self.ignored is not None:
            # last, as the mean of no row divides by 0, and an ignored row has no gradient
            share = share.masked_fill_(self.ignored, 0)
        b = share if self.row_weight is None else share * self.row_weight
        return (
            b * self.nll_factor if self.smooth_factor > 0 else b,
            share * self.smooth_factor if self.smooth_factor > 0 else None,
            share * self.z_loss if self.z_loss > 0 else None,
        )


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    terms: LossTerms,
    logit_scale: float,
    softcap: float | None,
    inplace: bool,
) -> Tensor:
    """The loss of all rows, differentiable."""
    args = (target, class_weight, terms, logit_scale, softcap)
    if _forms_gradient(logits, target, terms.row_weight, class_weight):
        logits = logits if inplace else with_folding_batch(logits)
        loss: Tensor = CrossEntropyLossFunction.apply(logits, *args, inplace)
        return loss
    return _composed_loss(logits, *args, inplace)


def _forms_gradient(logits: Tensor, *others: Tensor | None) -> bool:
    return (
        torch.is_grad_enabled()
        and logits.requires_grad
        # float16 would lose small gradients before a loss scaler's factor lifts them
        and logits.dtype != torch.float16
        and not any(other is not None and other.requires_grad for other in others)
        and is_eager()
    )


def _composed_loss(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    terms: LossTerms,
    logit_scale: float,
    softcap: float | None,
    inplace: bool = False,
) -> Tensor:
    rows = softmax_cross_entropy(
        logits, target, class_weight, logit_scale, softcap, inplace=inplace
    )
    return terms.of_all(rows.nll, rows.smooth, rows.lse)


class CrossEntropyLossFunction(Function):
    """The loss of all rows with the gradient formed beside it, for plain reverse mode.

    ``apply(logits, target, class_weight, terms, logit_scale, softcap, inplace)``. The first
    backward hands the gradient out, so that nothing holds its memory; a further one forms it again,
    and second derivatives are those of the composed loss.
    """

    # PyTorch inspects the signatures of a Function with setup_context at each call: 25 us
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        terms: LossTerms,
        logit_scale: float,
        softcap: float | None,
        inplace: bool,
    ) -> Tensor:
        ctx.save_for_backward(logits, target, class_weight)
        ctx.terms, ctx.options, ctx.inplace = terms, (logit_scale, softcap), inplace
        args = (target, class_weight, *terms.coefficients(logits), logit_scale, softcap)
        if inplace:
            nll, smooth, lse = cross_entropy_step_inplace(logits, *args)
            # whoever saved the logits for its own backward must not take the gradient for them
            torch.autograd.graph.increment_version(logits)
            ctx.dlogits = logits.detach()
        else:
            nll, smooth, lse, ctx.dlogits = cross_entropy_step(logits, *args)
        return terms.of_all(nll, smooth, lse)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, dloss), None, None, None, None, None, None


def _gradient(ctx: Any, dloss: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return _differentiable_gradient(ctx, dloss)
    dlogits: Tensor = _formed_again(ctx) if ctx.dlogits is None else ctx.dlogits
    if not is_eager() or torch._C._functorch.is_legacy_batchedtensor(dloss):
        # one backward for a batch of gradients
        return dlogits * dloss
    ctx.dlogits = None
    scale_inplace(dlogits, dloss)
    return dlogits


def _formed_again(ctx: Any) -> Tensor:
    if ctx.inplace:
        raise RuntimeError(
            "cross_entropy needs inplace=False for a second backward: the logits have been "
            "modified by an inplace operation, which made them their gradient"
        )
    logits, target, class_weight = ctx.saved_tensors
    coefficients = ctx.terms.coefficients(logits)
    *_, dlogits = cross_entropy_step(logits, target, class_weight, *coefficients, *ctx.options)
    return dlogits


def _differentiable_gradient(ctx: Any, dloss: Tensor) -> Tensor:
    if ctx.inplace:
        raise RuntimeError("cross_entropy needs inplace=False for second derivatives, got True")
    logits, target, class_weight = ctx.saved_tensors
    loss = _composed_loss(logits, target, class_weight, ctx.terms, *ctx.options)
    (dlogits,) = torch.autograd.grad(loss, logits, dloss, create_graph=True)
    return dlogits
