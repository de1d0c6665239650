"""The losses of rows, or their sum or mean: operators and autograd.

When the rows are read, the gradient of their sum or mean is known up to one factor, the incoming
gradient. So the pass that computes the loss also writes the gradient, and backward does not read
the logits again. It does where each row has its own factor, and in float16.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_softmax import reference
from torch_softmax._layout import RowOutputs
from torch_softmax._ops.cross_entropy import cross_entropy_rows, without_unused_rows
from torch_softmax._ops.donation import overwritten
from torch_softmax._ops.registration import (
    needs_differentiable_backward,
    register,
    takes_functions,
)
from torch_softmax._ops.scale import scaled_gradient
from torch_softmax._options import DEFAULT_OPTIONS, LossOptions

# the most classes for which backward of losses per row computes them again: a GPU kernel holds a
# row of that many, and reads it once
MAX_RECOMPUTED_CLASSES = 16384
_TENSORS = "Tensor target, Tensor? weight=None, Tensor? denominator=None"
# dloss, the incoming gradient of the loss, is a factor of dlogits; with it, a row whose factor is 0
# may count as ignored
_OPTIONS = (
    "SymInt ignore_index=-100, str reduction='mean', float label_smoothing=0.0, float z_loss=0.0,"
    " float? softcap=None, float logit_scale=1.0, *, Tensor? dloss=None"
)


def _empty_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    denominator: Tensor | None = None,
    dtype: torch.dtype | None = None,
    with_gradient: bool = True,
    *options: Any,
    dloss: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dlogits = torch.empty_like(logits) if with_gradient else logits.new_empty(0)
    shape = logits.shape[:-1] if LossOptions(*options).reduction == "none" else ()
    return logits.new_empty(shape, dtype=dtype), dlogits


def _empty_loss_inplace(logits: Tensor, *args: Any, dloss: Tensor | None = None) -> Tensor:
    loss, _ = _empty_loss(logits, *args[:4], False, *args[4:])
    return loss


cross_entropy_loss_operator = register(
    f"cross_entropy_loss(Tensor logits, {_TENSORS}, ScalarType? dtype=None,"
    f" bool with_gradient=True, {_OPTIONS}) -> (Tensor loss, Tensor dlogits)",
    _empty_loss,
    takes_any_layout=True,
)
cross_entropy_loss_inplace = register(
    f"cross_entropy_loss_inplace(Tensor(a!) logits, {_TENSORS}, ScalarType? dtype=None,"
    f" {_OPTIONS}) -> Tensor loss",
    _empty_loss_inplace,
)


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    inplace: bool,
) -> Tensor:
    """The losses of rows in ``dtype``, reduced as the options say; differentiable."""
    others_need_gradient = (
        target.requires_grad
        or (weight is not None and weight.requires_grad)
        or (denominator is not None and denominator.requires_grad)
    )
    with_gradient = torch.is_grad_enabled() and (logits.requires_grad or others_need_gradient)
    needs_rows = with_gradient and others_need_gradient
    args = (logits, target, weight, denominator)
    is_fused = takes_functions(*args)
    if not is_fused and reference.is_torch_loss(target, denominator, options):
        return reference.torch_loss(logits, target, weight, options, dtype)
    is_long = options.reduction == "none" and logits.shape[-1] > MAX_RECOMPUTED_CLASSES
    if is_long or needs_rows or not is_fused:
        return cross_entropy_with_rows(*args, options, dtype, False, inplace)[0]
    if with_gradient:
        loss: Tensor = SoftmaxCrossEntropyFunction.apply(*args, options, dtype, inplace)
        return loss
    keywords = _keywords(options, dtype, logits)
    loss = _call(cross_entropy_loss_operator, args, keywords, with_gradient=False)[0]
    return loss


def cross_entropy_with_rows(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    with_entropy: bool,
    inplace: bool,
) -> tuple[Tensor, RowOutputs]:
    """The loss, computed from the losses and statistics of its rows, and those; differentiable."""
    args = (logits, target, weight, denominator, options, dtype, with_entropy)
    if takes_functions(logits, target, weight, denominator):
        return reference.compose_loss(cross_entropy_rows, *args, inplace)
    return reference.compose_loss(reference.cross_entropy_forward, *args)


class SoftmaxCrossEntropyFunction(Function):
    """The loss of all rows; the forward pass computes the gradient too, where it can.

    ``apply(logits, target, weight, denominator, options, dtype, inplace)`` takes the arguments of
    the operator ``cross_entropy_loss``, with the six options as a tuple. It saves the logits and
    their gradient for backward; with ``inplace`` it saves the gradient alone, in the memory of the
    logits. With ``retain_graph=True`` backward returns a copy of the gradient.

    With reduction "none" and in float16 it saves the logits, and backward computes the gradient:
    each row has its own factor there, and small gradients would underflow before a loss scaler's
    factor. Second derivatives are those of ``reference``.
    """

    # no setup_context: PyTorch would inspect signatures at each call, which costs 25 us
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        denominator: Tensor | None,
        options: tuple[Any, ...],
        dtype: torch.dtype,
        inplace: bool,
    ) -> Tensor:
        inputs = (logits, target, weight, denominator)
        ctx.options, ctx.dtype, ctx.inplace = options, dtype, inplace
        ctx.keywords = keywords = _keywords(options, dtype, logits)
        if logits.dtype is torch.float16 or options[1] == "none":
            loss: Tensor = _call(
                cross_entropy_loss_operator, inputs, keywords, with_gradient=False
            )[0]
            ctx.save_for_backward(None, *inputs)
        elif inplace:
            loss = _call(cross_entropy_loss_inplace, inputs, keywords)
            ctx.save_for_backward(overwritten(logits))
        else:
            loss, dlogits = _call(cross_entropy_loss_operator, inputs, keywords)
            ctx.save_for_backward(dlogits, *inputs)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dlogits, *inputs = ctx.saved_tensors
        return _gradient(ctx, dloss, dlogits, inputs), None, None, None, None, None, None


def _keywords(options: tuple[Any, ...], dtype: torch.dtype, logits: Tensor) -> dict[str, Any]:
    """The operator's arguments that are not its defaults: to convert all of them takes 2 us."""
    keywords = {}
    if options != DEFAULT_OPTIONS:
        pairs = zip(LossOptions._fields, options, DEFAULT_OPTIONS, strict=True)
        keywords = {name: value for name, value, default in pairs if value != default}
    if dtype is not logits.dtype:
        keywords["dtype"] = dtype
    return keywords


def _call(
    operator: Callable[..., Any], inputs: Sequence[Any], keywords: dict[str, Any], **others: Any
) -> Any:
    _, _, weight, denominator = inputs
    given = inputs[:2] if weight is denominator is None else inputs
    return operator(*given, **keywords, **others)


def _gradient(ctx: Any, dloss: Tensor, dlogits: Tensor | None, inputs: list[Any]) -> Tensor:
    if not needs_differentiable_backward(dloss):
        if dlogits is None:
            return _late_gradient(ctx, dloss, inputs)
        return scaled_gradient(dlogits, dloss)
    is_first_order = not torch.is_grad_enabled()
    if is_first_order and dlogits is not None:
        return dlogits * dloss
    if ctx.inplace:
        raise RuntimeError("cross_entropy needs inplace=False for second derivatives, got True")
    logits, *others = inputs
    args = (*others, LossOptions(*ctx.options), ctx.dtype)
    with torch.enable_grad():
        x = without_unused_rows(logits, (dloss,))
        loss, _ = reference.compose_loss(reference.cross_entropy_forward, x, *args)
    (gradient,) = torch.autograd.grad(loss, logits, dloss, create_graph=not is_first_order)
    return gradient


def _late_gradient(ctx: Any, dloss: Tensor, inputs: list[Any]) -> Tensor:
    """The gradient, multiplied by ``dloss`` before it is rounded."""
    if ctx.inplace:
        _call(cross_entropy_loss_inplace, inputs, ctx.keywords, dloss=dloss)
        return overwritten(inputs[0])
    dlogits: Tensor = _call(cross_entropy_loss_operator, inputs, ctx.keywords, dloss=dloss)[1]
    return dlogits
