"""Cross-entropy of rows of logits against class indices: operators and derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from torch_softmax._ops.log_softmax import log_softmax
from torch_softmax._ops.registration import WithoutForwardMode, batch_first, register
from torch_softmax._ops.softmax import softmax
from torch_softmax._rows import compute_dtype, empty_rows_like, with_folding_batch


def _fake_forward(
    logits: Tensor, target: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    nll = torch.empty(target.shape, dtype=compute_dtype(logits.dtype), device=logits.device)
    return nll, torch.empty_like(nll), nll.new_empty(*target.shape, 2)


cross_entropy_forward = register(
    "cross_entropy_forward(Tensor logits, Tensor target, Tensor? class_weight)"
    " -> (Tensor nll, Tensor smooth, Tensor normalizer)",
    _fake_forward,
)
cross_entropy_backward = register(
    "cross_entropy_backward(Tensor logits, Tensor target, Tensor? class_weight,"
    " Tensor normalizer, Tensor a, Tensor b, Tensor? s) -> Tensor",
    lambda logits, *_: empty_rows_like(logits, logits.dtype),
)


def softmax_cross_entropy(
    logits: Tensor, target: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of each row, each without its factor, differentiable.

    Returns:
        ``nll`` = lse - logits[target]; ``smooth`` = sum(class_weight * (lse - logits)), zeros
        without ``class_weight``; and ``normalizer``, the two numbers whose sum is the row's lse.
        All in float32, in float64 for float64 logits.
    """
    function = _SoftmaxCrossEntropyTraced if is_compiling() else SoftmaxCrossEntropyFunction
    return function.apply(with_folding_batch(logits), target, class_weight)


def _cross_entropy_backward(logits: Tensor, *args: Tensor | None) -> Tensor:
    function = _CrossEntropyBackwardTraced if is_compiling() else CrossEntropyBackwardFunction
    return function.apply(with_folding_batch(logits), *args)


class SoftmaxCrossEntropyFunction(Function):
    """Losses of rows: ``apply(logits, target, class_weight) -> (nll, smooth, normalizer)``.

    Every cross-entropy is a combination of ``nll`` and ``smooth``, row by row. Their gradients
    are the coefficients of the one formula of the backward kernel:
    ``dlogits = a * softmax(logits) - b * onehot(target) - s * class_weight``.
    """

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, class_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return cross_entropy_forward(logits, target, class_weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, target, class_weight = inputs
        normalizer = output[2]
        ctx.mark_non_differentiable(normalizer)
        # a loss that nobody used has no gradient, and its term is left out
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, class_weight, normalizer)
        ctx.save_for_forward(logits, target, class_weight, normalizer)

    @staticmethod
    def backward(
        ctx: Any, dnll: Tensor | None, dsmooth: Tensor | None, _: None
    ) -> tuple[Tensor | None, None, Tensor | None]:
        logits, target, class_weight, normalizer = ctx.saved_tensors
        if dnll is None and dsmooth is None:
            return None, None, None
        if class_weight is None or dsmooth is None:
            dlogits = _cross_entropy_backward(logits, target, None, normalizer, dnll, dnll, None)
            return dlogits, None, None
        b = torch.zeros_like(dsmooth) if dnll is None else dnll
        a = b + dsmooth * class_weight.sum()
        dlogits = _cross_entropy_backward(logits, target, class_weight, normalizer, a, b, dsmooth)
        dclass_weight = None
        if ctx.needs_input_grad[2]:
            dclass_weight = _sum_over_rows(dsmooth, -log_softmax(logits, class_weight.dtype))
        return dlogits, None, dclass_weight

    @staticmethod
    def jvp(
        ctx: Any, logits_tangent: Tensor | None, _: None, class_weight_tangent: Tensor | None
    ) -> tuple[Tensor, Tensor, None]:
        logits, target, class_weight, normalizer = ctx.saved_tensors
        nll_tangent = smooth_tangent = normalizer.new_zeros(target.shape)
        if logits_tangent is not None:
            tangent = logits_tangent.to(normalizer.dtype)
            lse_tangent = (softmax(logits, normalizer.dtype) * tangent).sum(-1)
            nll_tangent = lse_tangent - _at_target(tangent, target)
            if class_weight is not None:
                smooth_tangent = lse_tangent * class_weight.sum() - (tangent * class_weight).sum(-1)
        if class_weight_tangent is not None:
            cost = -log_softmax(logits, normalizer.dtype)
            smooth_tangent = smooth_tangent + (cost * class_weight_tangent).sum(-1)
        return nll_tangent, smooth_tangent, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, logits: Tensor, target: Tensor, class_weight: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        logits, target = batch_first(info.batch_size, in_dims[:2], logits, target)
        if class_weight is None or in_dims[2] is None:
            return softmax_cross_entropy(logits, target, class_weight), (0, 0, 0)
        # the kernels know one weight per class, not one per class and sample
        nll, _, normalizer = softmax_cross_entropy(logits, target, None)
        weight = _beside_rows(class_weight.movedim(in_dims[2], 0), logits)
        smooth = -(weight * log_softmax(logits, nll.dtype)).sum(-1)
        return (nll, smooth, normalizer), (0, 0, 0)


class CrossEntropyBackwardFunction(Function):
    """dlogits = a * softmax(logits) - b * onehot(target) - s * class_weight, differentiable.

    ``apply(logits, target, class_weight, normalizer, a, b, s)``. The normalizer is a function of
    the logits, so the derivative in the logits covers it and it has none of its own.
    """

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        normalizer: Tensor,
        a: Tensor,
        b: Tensor,
        s: Tensor | None,
    ) -> Tensor:
        return cross_entropy_backward(logits, target, class_weight, normalizer, a, b, s)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, target, class_weight, _, a, _, s = inputs
        ctx.save_for_backward(logits, target, class_weight, a, s)
        ctx.save_for_forward(logits, target, class_weight, a, s)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, class_weight, a, s = ctx.saved_tensors
        v = v.to(a.dtype)
        p = softmax(logits, a.dtype)
        da = (p * v).sum(-1)
        logits_gradient = a.unsqueeze(-1) * p * (v - da.unsqueeze(-1))
        db = -_at_target(v, target)
        ds = dclass_weight = None
        if class_weight is not None:
            ds = -(v * class_weight).sum(-1)
            dclass_weight = -_sum_over_rows(s, v)
        return logits_gradient.to(logits.dtype), None, dclass_weight, None, da, db, ds

    @staticmethod
    def jvp(
        ctx: Any,
        logits_tangent: Tensor,
        _target: None,
        class_weight_tangent: Tensor | None,
        _normalizer: Tensor | None,
        a_tangent: Tensor,
        b_tangent: Tensor,
        s_tangent: Tensor | None,
    ) -> Tensor:
        logits, target, class_weight, a, s = ctx.saved_tensors
        p = softmax(logits, a.dtype)
        lse_tangent = (p * logits_tangent).sum(-1)
        p_tangent = p * (logits_tangent - lse_tangent.unsqueeze(-1))
        tangent = a.unsqueeze(-1) * p_tangent + a_tangent.unsqueeze(-1) * p
        tangent = tangent.scatter_add(-1, _index(logits, target), -b_tangent.unsqueeze(-1))
        if s_tangent is not None:
            tangent = tangent - s_tangent.unsqueeze(-1) * class_weight
        if class_weight_tangent is not None:
            tangent = tangent - s.unsqueeze(-1) * class_weight_tangent
        return tangent.to(logits.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Tensor | None) -> tuple[Tensor, int]:
        if args[2] is None or in_dims[2] is None:
            batched = batch_first(
                info.batch_size, (*in_dims[:2], *in_dims[3:]), *args[:2], *args[3:]
            )
            return _cross_entropy_backward(*batched[:2], args[2], *batched[2:]), 0
        logits, target, class_weight, normalizer, a, b, s = batch_first(
            info.batch_size, in_dims, *args
        )
        dlogits = _cross_entropy_backward(logits, target, None, normalizer, a, b, None)
        smooth_part = s.unsqueeze(-1) * _beside_rows(class_weight, logits)
        return dlogits - smooth_part.to(dlogits.dtype), 0


class _SoftmaxCrossEntropyTraced(WithoutForwardMode, SoftmaxCrossEntropyFunction):
    pass


class _CrossEntropyBackwardTraced(WithoutForwardMode, CrossEntropyBackwardFunction):
    pass


def _at_target(x: Tensor, target: Tensor) -> Tensor:
    return x.gather(-1, _index(x, target)).squeeze(-1)


def _index(x: Tensor, target: Tensor) -> Tensor:
    # on a GPU a target that is no class comes this far, and a gather outside the row kills CUDA
    return target.clamp(0, x.shape[-1] - 1).unsqueeze(-1)


def _sum_over_rows(row_factor: Tensor, x: Tensor) -> Tensor:
    return (row_factor.unsqueeze(-1) * x).flatten(0, -2).sum(0) if x.dim() > 1 else row_factor * x


def _beside_rows(class_weight: Tensor, logits: Tensor) -> Tensor:
    """One weight per sample and class, (samples, classes), to broadcast over a sample's rows."""
    return class_weight.view(-1, *[1] * (logits.dim() - 2), class_weight.shape[-1])
