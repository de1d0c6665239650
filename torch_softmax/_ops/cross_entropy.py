"""Cross-entropy of rows of logits, against class indices or probabilities."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import reference
from torch_softmax._layout import (
    RowOutputs,
    empty_row_outputs,
    empty_rows_like,
    wanted_outputs,
    with_collapsible_batch_dims,
)
from torch_softmax._ops.derivatives import backward_derivative, forward_derivative
from torch_softmax._ops.log_softmax import log_softmax
from torch_softmax._ops.registration import (
    WithoutForwardMode,
    apply,
    batch_first,
    register,
)

cross_entropy_forward = register(
    "cross_entropy_forward(Tensor logits, Tensor target, Tensor? class_weight,"
    " float logit_scale, float? softcap, bool with_entropy)"
    " -> (Tensor nll, Tensor smooth, Tensor target_weight, Tensor lse,"
    " Tensor entropy, Tensor prediction, Tensor softmax_stats)",
    lambda logits, target, class_weight, logit_scale, softcap, with_entropy: empty_row_outputs(
        logits, target, class_weight, with_entropy
    ),
)
cross_entropy_backward = register(
    "cross_entropy_backward(Tensor logits, Tensor target, Tensor? class_weight,"
    " Tensor softmax_stats, Tensor a, Tensor b, Tensor? s, Tensor? e,"
    " float logit_scale, float? softcap) -> Tensor",
    lambda logits, *_: empty_rows_like(logits, logits.dtype),
)
cross_entropy_backward_inplace = register(
    "cross_entropy_backward_inplace(Tensor(a!) logits, Tensor target, Tensor? class_weight,"
    " Tensor softmax_stats, Tensor a, Tensor b, Tensor? s, Tensor? e,"
    " float logit_scale, float? softcap) -> ()",
    lambda logits, *_: None,
)


def softmax_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    inplace: bool = False,
) -> RowOutputs:
    """Losses and statistics of rows, differentiable: ``reference.cross_entropy_forward``."""
    logits = logits if inplace else with_collapsible_batch_dims(logits)
    return RowOutputs(
        *apply(
            SoftmaxCrossEntropyFunction,
            _SoftmaxCrossEntropyTraced,
            logits,
            target,
            class_weight,
            logit_scale,
            softcap,
            with_entropy,
            inplace,
        )
    )


def _cross_entropy_backward(logits: Tensor, *args: Any) -> Tensor:
    return apply(
        CrossEntropyBackwardFunction,
        _CrossEntropyBackwardTraced,
        with_collapsible_batch_dims(logits),
        *args,
    )


class SoftmaxCrossEntropyFunction(Function):
    """Losses and statistics of rows of logits, with one kernel forward and one backward.

    ``apply(logits, target, class_weight, logit_scale, softcap, with_entropy, inplace)`` returns
    what ``reference.cross_entropy_forward`` defines. Every cross-entropy is a function of these
    numbers, row by row, and the gradients that arrive here are the coefficients of the one formula
    of the backward kernel.
    """

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        logit_scale: float,
        softcap: float | None,
        with_entropy: bool,
        inplace: bool,
    ) -> tuple[Tensor, ...]:
        return tuple(
            cross_entropy_forward(logits, target, class_weight, logit_scale, softcap, with_entropy)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, target, class_weight, *options, ctx.inplace = inputs
        ctx.logit_scale, ctx.softcap, ctx.with_entropy = options
        _, _, target_weight, _, entropy, prediction, softmax_stats = output
        ctx.mark_non_differentiable(prediction, softmax_stats)
        # a number that nobody used has no gradient, and its term is left out
        ctx.set_materialize_grads(False)
        saved = (logits, target, class_weight, target_weight, entropy, softmax_stats)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, target, class_weight, target_weight, entropy, softmax_stats = ctx.saved_tensors
        # while tracing, torch.compile passes zeros for what nobody used, also for what is empty
        wanted = wanted_outputs(target, class_weight, ctx.with_entropy)
        dnll, dsmooth, dmass, dlse, dentropy, _, _ = (
            gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)
        )
        b = torch.zeros_like(softmax_stats[..., 0]) if dnll is None else dnll
        dtarget = dclass_weight = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dtarget, dclass_weight = _gradients_of_shares(
                reference.capped(logits, ctx.logit_scale, ctx.softcap),
                target,
                class_weight,
                b,
                dsmooth,
                dmass,
            )
        if not ctx.needs_input_grad[0]:
            return None, dtarget, dclass_weight, None, None, None, None
        a = b * target_weight if target.is_floating_point() else b
        if dsmooth is not None:
            a = a + dsmooth * class_weight.sum()
        if dlse is not None:
            a = a + dlse
        if dentropy is not None:
            a = a - dentropy * entropy
        backward = _overwrite if ctx.inplace else _cross_entropy_backward
        rows = (softmax_stats, a, b, dsmooth, dentropy)
        dlogits = backward(logits, target, class_weight, *rows, ctx.logit_scale, ctx.softcap)
        return dlogits, dtarget, dclass_weight, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, target, class_weight, *_ = ctx.saved_tensors

        def outputs(
            logits: Tensor, target: Tensor, class_weight: Tensor | None
        ) -> tuple[Tensor, ...]:
            return reference.cross_entropy_forward(
                logits, target, class_weight, ctx.logit_scale, ctx.softcap, ctx.with_entropy
            )[:5]

        primals = (logits, _safe(target, logits), class_weight)
        return (*forward_derivative(outputs, primals, tangents[:3]), None, None)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        *options: Any,
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        if options[-1]:
            raise RuntimeError("cross_entropy needs inplace=False under vmap, got True")
        logits, target = batch_first(info.batch_size, in_dims[:2], logits, target)
        outputs: tuple[Tensor, ...]
        if class_weight is None or in_dims[2] is None:
            outputs = softmax_cross_entropy(logits, target, class_weight, *options)
        else:
            # the kernels know one weight per class, not one per class and sample
            weight = _beside_rows(class_weight.movedim(in_dims[2], 0), logits)
            outputs = reference.cross_entropy_forward(
                logits, _safe(target, logits), weight, *options[:-1]
            )
        wanted = wanted_outputs(target, class_weight, with_entropy=options[2])
        return tuple(outputs), tuple(0 if want else None for want in wanted)


class CrossEntropyBackwardFunction(Function):
    """The gradient in the logits, differentiable; ``reference.cross_entropy_backward`` defines it.

    ``apply(logits, target, class_weight, softmax_stats, a, b, s, e, logit_scale, softcap)``. The
    softmax_stats are a function of the logits, so their derivative covers them. What no kernel
    computes, the second derivatives, PyTorch derives from the reference.
    """

    # torch.compile of PyTorch 2.11 tells by the count of these whether they include a context
    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        softmax_stats: Tensor,
        a: Tensor,
        b: Tensor,
        s: Tensor | None,
        e: Tensor | None,
        logit_scale: float,
        softcap: float | None,
    ) -> Tensor:
        return cross_entropy_backward(
            logits, target, class_weight, softmax_stats, a, b, s, e, logit_scale, softcap
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, target, class_weight, _, a, b, s, e, ctx.logit_scale, ctx.softcap = inputs
        ctx.save_for_backward(logits, target, class_weight, a, b, s, e)
        ctx.save_for_forward(logits, target, class_weight, a, b, s, e)

    @staticmethod
    def backward(ctx: Any, ddlogits: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4, 5, 6, 7)]
        dlogits, dtarget, dclass_weight, *drows = backward_derivative(
            partial(_dlogits, ctx), ctx.saved_tensors, needed, ddlogits
        )
        return dlogits, dtarget, dclass_weight, None, *drows, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        moving = (*tangents[:3], *tangents[4:8])
        return forward_derivative(partial(_dlogits, ctx), ctx.saved_tensors, moving)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        class_weight, options = args[2], args[8:]
        logits, target, *rows = batch_first(
            info.batch_size, (*in_dims[:2], *in_dims[3:8]), *args[:2], *args[3:8]
        )
        if class_weight is None or in_dims[2] is None:
            return _cross_entropy_backward(logits, target, class_weight, *rows, *options), 0
        weight = _beside_rows(class_weight.movedim(in_dims[2], 0), logits)
        target = _safe(target, logits)
        return reference.cross_entropy_backward(logits, target, weight, *rows, *options), 0


class _SoftmaxCrossEntropyTraced(WithoutForwardMode, SoftmaxCrossEntropyFunction):
    pass


class _CrossEntropyBackwardTraced(WithoutForwardMode, CrossEntropyBackwardFunction):
    pass


def _dlogits(
    ctx: Any,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
) -> Tensor:
    target = _safe(target, logits)
    return reference.cross_entropy_backward(
        logits, target, class_weight, None, a, b, s, e, ctx.logit_scale, ctx.softcap
    )


def _overwrite(logits: Tensor, *args: Any) -> Tensor:
    if torch.is_grad_enabled():
        raise RuntimeError("cross_entropy needs inplace=False for second derivatives, got True")
    cross_entropy_backward_inplace(logits, *args)
    # whoever saved the logits for its own backward must not take the gradient for them
    torch.autograd.graph.increment_version(logits)
    return logits.detach()


def _gradients_of_shares(
    x: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    b: Tensor,
    dsmooth: Tensor | None,
    dmass: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in target probabilities and class weights: rarely wanted, so without a kernel."""
    cost = -log_softmax(x, x.dtype)
    dtarget = dclass_weight = None
    if target.is_floating_point():
        dshare = b.unsqueeze(-1) * cost
        if dmass is not None:
            dshare = dshare + dmass.unsqueeze(-1)
        dtarget = (dshare if class_weight is None else dshare * class_weight).to(target.dtype)
        dclass_weight = _sum_over_rows(dshare.clamp(max=torch.finfo(x.dtype).max) * target)
    if class_weight is not None and dsmooth is not None:
        from_smooth = _sum_over_rows(dsmooth.unsqueeze(-1) * cost)
        dclass_weight = from_smooth if dclass_weight is None else dclass_weight + from_smooth
    return dtarget, None if class_weight is None else dclass_weight


def _sum_over_rows(x: Tensor) -> Tensor:
    return x.sum(tuple(range(x.dim() - 1))) if x.dim() > 1 else x


def _safe(target: Tensor, logits: Tensor) -> Tensor:
    # on a GPU a target that is no class comes this far, and a gather outside the row kills CUDA
    return target if target.is_floating_point() else target.clamp(0, logits.shape[-1] - 1)


def _beside_rows(class_weight: Tensor, logits: Tensor) -> Tensor:
    """One weight per sample and class, (samples, classes), to broadcast over a sample's rows."""
    return class_weight.view(-1, *[1] * (logits.dim() - 2), class_weight.shape[-1])
