"""Cross-entropy of a linear layer whose classes are sharded across ranks."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from torch_softmax import reference
from torch_softmax._layout import compute_dtype
from torch_softmax._ops.linear_rows import dense_logits
from torch_softmax._options import LossOptions, Reduction
from torch_softmax.distributed.class_shard import ClassShard, as_class_shard
from torch_softmax.distributed.collectives import as_group, with_summed_gradient
from torch_softmax.distributed.cross_entropy_rows import RowOptions, vocab_parallel_rows
from torch_softmax.distributed.derivatives import check_reverse_mode
from torch_softmax.distributed.linear_cross_entropy_rows import vocab_parallel_linear_rows
from torch_softmax.distributed.linear_shard_operators import HeadOptions
from torch_softmax.distributed.loss import loss_of_rows, loss_terms
from torch_softmax.distributed.shard_rows import GlobalRows
from torch_softmax.functional.checks import as_loss_options
from torch_softmax.functional.linear_call import LinearCall, as_linear_call

_NAME = "vocab_parallel_linear_cross_entropy"


def vocab_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight_shard: Tensor,
    target: Tensor,
    *,
    group: ProcessGroup | None = None,
    num_classes: int | None = None,
    class_offset: int | None = None,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    denominator: float | Tensor | None = None,
    logits_dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """:func:`torch_softmax.linear_cross_entropy` of a layer whose classes are sharded across ranks.

    Every rank calls it with the same input and with the weight's rows of its own classes, and all
    get the same loss, bit for bit. The forward pass gathers a few numbers per row. The backward
    pass computes the logits of each chunk again and sums the input's gradient over the ranks, in
    its dtype, while the last chunk's product for the weight runs. For gradients of target
    probabilities and class weights all logits of the rank are there at once.

    Args:
        input: Features, the same on every rank; as for :func:`torch_softmax.linear_cross_entropy`.
        linear_weight_shard: Weight of this rank's classes, shape ``(classes of this rank,
            features)``, or with axes between as there. Ranks may hold different numbers of classes.
        target: Indices among all classes, the same on every rank; or probabilities of this rank's
            classes.
        group: As for :func:`vocab_parallel_cross_entropy`, as are the two that follow.
        num_classes: As there.
        class_offset: As there.
        linear_bias: Bias of this rank's classes.
        weight: Factors of this rank's classes.
        ignore_index: As for :func:`torch_softmax.linear_cross_entropy`, as are the options that
            follow.
        reduction: As there.
        label_smoothing: As there.
        z_loss: As there.
        softcap: As there.
        logit_scale: As there.
        denominator: As there, the same on every rank.
        logits_dtype: As there.
        chunk_size: As there.

    Returns:
        The loss of all classes, on every rank. The gradients are those of this loss, complete for
        ``input``, those of the rank's own classes for the others.

    Raises:
        TypeError: As for :func:`vocab_parallel_cross_entropy`, as are the others.
        ValueError: Shapes or devices disagree, or an option is out of range.
        IndexError: A target on the CPU is neither a class nor ``ignore_index``.
        RuntimeError: There is no process group, or a transform other than reverse mode is active.
    """
    options = as_loss_options(
        _NAME, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    tensors = (input, linear_weight_shard, target, linear_bias, weight, denominator)
    call = as_linear_call(_NAME, tensors, options, logits_dtype, chunk_size, min_classes=0)
    check_reverse_mode(_NAME)
    n_local = linear_weight_shard.shape[0]
    shard = as_class_shard(_NAME, as_group(_NAME, group), n_local, num_classes, class_offset)
    loss = _loss(call, shard, options)
    return loss.reshape(call.shape) if reduction == "none" else loss


def _loss(call: LinearCall, shard: ClassShard, options: LossOptions) -> Tensor:
    target, weight, denominator, _, dtype, chunk_size = call.arguments
    target, ignored = reference.without_ignored(target, options.ignore_index)
    weight = None if weight is None else weight.to(compute_dtype(call.head.logits_dtype))
    others_need_gradient = target.requires_grad or (weight is not None and weight.requires_grad)
    if others_need_gradient and torch.is_grad_enabled():
        rows, shard = _dense_rows(call, target, weight, ignored, shard, options)
    else:
        scaling = (options.logit_scale, options.softcap)
        head_options = HeadOptions(*scaling, call.head.logits_dtype, chunk_size)
        rows, shard = vocab_parallel_linear_rows(
            *(_NAME, call.head, target, weight, ignored, shard, head_options),
            with_smoothing=options.label_smoothing > 0,
        )
    args = (weight is not None, shard.num_classes, denominator, options)
    return loss_of_rows(loss_terms(rows, ignored, *args), rows, options).to(dtype)


def _dense_rows(
    call: LinearCall,
    target: Tensor,
    weight: Tensor | None,
    ignored: Tensor | None,
    shard: ClassShard,
    options: LossOptions,
) -> tuple[GlobalRows, ClassShard]:
    head = call.head._replace(x=with_summed_gradient(call.head.x, shard.group))
    row_options = RowOptions(
        *(_NAME, options.label_smoothing > 0, False, options.logit_scale, options.softcap),
        inplace=False,
    )
    logits = dense_logits(head, target, ignored)
    return vocab_parallel_rows(logits, target, weight, shard, row_options)
