"""Cross-entropy of each row with its statistics: operators and autograd.

They serve the cases that ``cross_entropy_loss`` does not: statistics, losses of long rows, and
gradients of target probabilities and of class weights.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import reference
from torch_softmax._layout import RowOutputs, empty_row_outputs, enabled_outputs
from torch_softmax._ops.donation import overwritten
from torch_softmax._ops.registration import (
    is_batched,
    is_plain_reverse_mode,
    needs_differentiable_backward,
    register,
)
from torch_softmax._ops.softmax import log_softmax

cross_entropy_forward = register(
    "cross_entropy_forward(Tensor logits, Tensor target, Tensor? class_weight,"
    " float logit_scale, float? softcap, bool with_entropy)"
    " -> (Tensor nll, Tensor smooth, Tensor target_weight, Tensor lse,"
    " Tensor entropy, Tensor prediction, Tensor softmax_stats)",
    lambda logits, target, class_weight, logit_scale, softcap, with_entropy: empty_row_outputs(
        logits, target, class_weight, with_entropy
    ),
    takes_any_layout=True,
)
cross_entropy_backward = register(
    "cross_entropy_backward(Tensor logits, Tensor target, Tensor? class_weight,"
    " Tensor softmax_stats, Tensor a, Tensor b, Tensor? s, Tensor? e,"
    " float logit_scale, float? softcap) -> Tensor",
    lambda logits, *_: torch.empty_like(logits),
    takes_any_layout=True,
)
cross_entropy_backward_inplace = register(
    "cross_entropy_backward_inplace(Tensor(a!) logits, Tensor target, Tensor? class_weight,"
    " Tensor softmax_stats, Tensor a, Tensor b, Tensor? s, Tensor? e,"
    " float logit_scale, float? softcap) -> ()",
    lambda logits, *_: None,
)


def cross_entropy_rows(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_entropy: bool,
    inplace: bool,
) -> RowOutputs:
    """Losses and statistics of rows, differentiable; see ``reference.cross_entropy_forward``."""
    return RowOutputs(
        *CrossEntropyRowsFunction.apply(
            logits, target, class_weight, logit_scale, softcap, with_entropy, inplace
        )
    )


class CrossEntropyRowsFunction(Function):
    """Losses and statistics of rows of logits, with one kernel forward and one backward.

    Every cross-entropy is a function of these numbers, row by row. The incoming gradients are the
    coefficients of the backward kernel's formula.
    """

    # no setup_context: PyTorch would inspect signatures at each call, which costs 25 us
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        logit_scale: float,
        softcap: float | None,
        with_entropy: bool,
        inplace: bool,
    ) -> tuple[Tensor, ...]:
        rows = RowOutputs(
            *cross_entropy_forward(logits, target, class_weight, logit_scale, softcap, with_entropy)
        )
        ctx.logit_scale, ctx.softcap = logit_scale, softcap
        ctx.with_entropy, ctx.inplace = with_entropy, inplace
        ctx.mark_non_differentiable(rows.prediction, rows.softmax_stats)
        # an unused output has gradient None, and backward leaves out its term
        ctx.set_materialize_grads(False)
        statistics = (rows.target_weight, rows.entropy, rows.softmax_stats)
        ctx.save_for_backward(logits, target, class_weight, *statistics)
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        no_options = (None, None, None, None)
        if needs_differentiable_backward(*gradients):
            return (*_differentiable_gradients(ctx, gradients), *no_options)
        logits, target, class_weight, target_weight, entropy, softmax_stats = ctx.saved_tensors
        # while tracing, torch.compile passes zeros for unused outputs, even for empty ones
        enabled = enabled_outputs(target, class_weight, ctx.with_entropy)
        dnll, dsmooth, dtarget_weight, dlse, dentropy, _, _ = (
            gradient if is_enabled else None
            for gradient, is_enabled in zip(gradients, enabled, strict=True)
        )
        b = torch.zeros_like(softmax_stats[..., 0]) if dnll is None else dnll
        dlogits = dtarget = dclass_weight = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            x = without_unused_rows(logits, gradients[:5])
            x = reference.apply_softcap(x, ctx.logit_scale, ctx.softcap)
            dtarget, dclass_weight = _gradients_of_weights(
                x, target, class_weight, b, dsmooth, dtarget_weight
            )
        if ctx.needs_input_grad[0]:
            a = b * target_weight if target.is_floating_point() else b
            if dsmooth is not None:
                a = a + dsmooth * class_weight.sum()
            if dlse is not None:
                a = a + dlse
            if dentropy is not None:
                a = a - dentropy * entropy
            rows = (softmax_stats, a, b, dsmooth, dentropy)
            backward = _overwrite if ctx.inplace else cross_entropy_backward
            dlogits = backward(logits, target, class_weight, *rows, ctx.logit_scale, ctx.softcap)
        return (dlogits, dtarget, dclass_weight, *no_options)


def _overwrite(logits: Tensor, *args: Any) -> Tensor:
    cross_entropy_backward_inplace(logits, *args)
    return overwritten(logits)


def _differentiable_gradients(
    ctx: Any, gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    if ctx.inplace:
        raise RuntimeError("cross_entropy needs inplace=False for second derivatives, got True")
    needed = [i for i in range(3) if ctx.needs_input_grad[i]]
    with torch.enable_grad():
        # aliases: target probabilities may be a function of the logits, and these derivatives are
        # partial ones
        inputs: list[Any] = [x if x is None else x.view_as(x) for x in ctx.saved_tensors[:3]]
        x = without_unused_rows(inputs[0], gradients[:5])
        rows = reference.cross_entropy_forward(
            x, inputs[1], inputs[2], ctx.logit_scale, ctx.softcap, ctx.with_entropy
        )
    # with constant logits, some rows depend on no input
    used = [
        i for i, gradient in enumerate(gradients) if gradient is not None and rows[i].requires_grad
    ]
    derivatives = torch.autograd.grad(
        [rows[i] for i in used],
        [inputs[i] for i in needed],
        [gradients[i] for i in used],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
        materialize_grads=True,
    )
    results: list[Tensor | None] = [None] * 3
    for i, derivative in zip(needed, derivatives, strict=True):
        results[i] = derivative
    return tuple(results)


def without_unused_rows(logits: Tensor, gradients: tuple[Tensor | None, ...]) -> Tensor:
    """``logits`` with 0 in rows that are not finite and whose numbers have a gradient of 0.

    They are ignored rows, most likely, and 0 times their NaN would be NaN.
    """
    if not is_plain_reverse_mode() or any(map(is_batched, gradients)):
        # a batch of gradients has no one mask
        return logits
    is_unused = ~logits.isfinite().all(-1)
    for gradient in gradients:
        if gradient is not None and gradient.shape == is_unused.shape:
            is_unused = is_unused & (gradient == 0)
    return logits.masked_fill(is_unused.unsqueeze(-1), 0)


def _gradients_of_weights(
    x: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    b: Tensor,
    dsmooth: Tensor | None,
    dtarget_weight: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of target probabilities and class weights; too rare for a kernel."""
    cost = -log_softmax(x, -1, x.dtype)
    dtarget = dclass_weight = None
    if target.is_floating_point():
        dweights = b.unsqueeze(-1) * cost
        if dtarget_weight is not None:
            dweights = dweights + dtarget_weight.unsqueeze(-1)
        dtarget = (dweights if class_weight is None else dweights * class_weight).to(target.dtype)
        dclass_weight = sum_over_rows(dweights.clamp(*_finite_range(x.dtype)) * target)
    if class_weight is not None and dsmooth is not None:
        from_smooth = sum_over_rows(dsmooth.unsqueeze(-1) * cost)
        dclass_weight = from_smooth if dclass_weight is None else dclass_weight + from_smooth
    return dtarget, None if class_weight is None else dclass_weight


def _finite_range(dtype: torch.dtype) -> tuple[float, float]:
    return torch.finfo(dtype).min, torch.finfo(dtype).max


def sum_over_rows(x: Tensor) -> Tensor:
    """The sum over all axes but that of the classes."""
    return x.sum(tuple(range(x.dim() - 1))) if x.dim() > 1 else x
