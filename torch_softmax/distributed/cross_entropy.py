"""Cross-entropy of logits whose classes are sharded across ranks."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from torch_softmax import reference
from torch_softmax._layout import compute_dtype
from torch_softmax._options import LossOptions, Reduction
from torch_softmax.distributed.class_shard import as_class_shard
from torch_softmax.distributed.collectives import as_group
from torch_softmax.distributed.cross_entropy_rows import RowOptions, vocab_parallel_rows
from torch_softmax.distributed.derivatives import check_reverse_mode
from torch_softmax.distributed.loss import loss_of_rows, loss_terms
from torch_softmax.distributed.shard_rows import GlobalRows
from torch_softmax.functional import CrossEntropyStats
from torch_softmax.functional.checks import (
    as_denominator,
    as_loss_options,
    check_cross_entropy_tensors,
    check_strided,
)
from torch_softmax.functional.cross_entropy import class_axis_last, donated, loss_dtype


def vocab_parallel_cross_entropy(
    input_shard: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    group: ProcessGroup | None = None,
    num_classes: int | None = None,
    class_offset: int | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """:func:`torch_softmax.cross_entropy` of logits whose classes are sharded across ranks.

    Every rank calls it with its own classes of the same rows, and all get the same loss, bit for
    bit. One gather of a few numbers per row is the only communication; backward has none. The
    logits are read in their own dtype and never copied. Derivatives are those of
    reverse mode, of every order. A loss that each rank forms from its own gradient, such as a
    gradient penalty, is one term of a sum over the ranks.

    Args:
        input_shard: Logits of this rank's classes, shape ``(rows, classes of this rank)``, with the
            axes that :func:`torch_softmax.cross_entropy` takes. Ranks may hold different numbers of
            classes, or none.
        target: Indices among all classes, the same on every rank; or probabilities of this rank's
            classes, in the shape of ``input_shard``.
        weight: Factors of this rank's classes.
        group: The ranks that hold the classes, in the order of the classes; None takes all ranks.
        num_classes: Number of all classes. Each rank then holds its chunk of them, as
            ``torch.chunk`` and DTensor's ``Shard`` cut them, or the classes from ``class_offset``
            on. With None the ranks tell each other how many they hold, in the same gather, and read
            it on the host, which on a GPU waits for the device; where they hold unequal numbers,
            the first call gathers twice.
        class_offset: Index of this rank's first class, for other layouts than chunks.
        ignore_index: As for :func:`torch_softmax.cross_entropy`, as are the options that follow.
        reduction: As there.
        label_smoothing: Part of each target that is spread evenly over the classes of all ranks.
        z_loss: As there, of the log-sum-exp over all classes.
        softcap: As there.
        logit_scale: As there.
        denominator: As there, the same on every rank.
        inplace: As there; backward overwrites ``input_shard``.

    Returns:
        The loss of all classes, on every rank. Its gradient in ``input_shard`` is that of the loss
        itself, not of a sum over ranks.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices disagree, or an option is out of range.
        IndexError: A target on the CPU is neither a class nor ``ignore_index``; under torch.compile
            and on a GPU it makes the loss and gradient of its row NaN.
        RuntimeError: There is no process group, or a transform other than reverse mode is active.
    """
    name = "vocab_parallel_cross_entropy"
    options = as_loss_options(
        name, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    layout = (group, num_classes, class_offset)
    tensors = (input_shard, target, weight, denominator)
    return _vocab_parallel_loss(name, tensors, layout, options, False, inplace)[0]


def vocab_parallel_cross_entropy_with_stats(
    input_shard: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    group: ProcessGroup | None = None,
    num_classes: int | None = None,
    class_offset: int | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
) -> CrossEntropyStats:
    """:func:`vocab_parallel_cross_entropy` with lse, entropy and prediction over all classes.

    Loss, lse and entropy are differentiable, and come from the same gather.

    Args:
        input_shard: As for :func:`vocab_parallel_cross_entropy`, as are all others.
        target: Class indices or probabilities.
        weight: Factors of this rank's classes.
        group: The ranks that hold the classes.
        num_classes: Number of all classes.
        class_offset: Index of this rank's first class.
        ignore_index: Target value of ignored rows, which have statistics too.
        reduction: Applies to ``loss`` only.
        label_smoothing: Applies to ``loss`` only.
        z_loss: Applies to ``loss`` only.
        softcap: The statistics are those of the logits after the softcap.
        logit_scale: The statistics are those of the scaled logits.
        denominator: Applies to ``loss`` only.
        inplace: Whether the gradient overwrites ``input_shard``.

    Returns:
        :class:`torch_softmax.CrossEntropyStats`, the same on every rank.

    Raises:
        TypeError: As for :func:`vocab_parallel_cross_entropy`.
        ValueError: As for :func:`vocab_parallel_cross_entropy`.
        IndexError: As for :func:`vocab_parallel_cross_entropy`.
        RuntimeError: As for :func:`vocab_parallel_cross_entropy`.
    """
    name = "vocab_parallel_cross_entropy_with_stats"
    options = as_loss_options(
        name, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    layout = (group, num_classes, class_offset)
    tensors = (input_shard, target, weight, denominator)
    loss, rows = _vocab_parallel_loss(name, tensors, layout, options, True, inplace)
    return CrossEntropyStats(loss, rows.lse, rows.entropy, rows.prediction)


def _vocab_parallel_loss(
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor | None, float | Tensor | None],
    layout: tuple[ProcessGroup | None, int | None, int | None],
    options: LossOptions,
    with_entropy: bool,
    inplace: bool,
) -> tuple[Tensor, GlobalRows]:
    input, target, weight, denominator = tensors
    group, num_classes, class_offset = layout
    check_strided(name, "input", input)
    check_cross_entropy_tensors(name, input, target, weight, options.ignore_index, min_classes=0)
    denominator = as_denominator(name, denominator, options.reduction, input)
    check_reverse_mode(name)
    n_local = input.shape[min(input.dim() - 1, 1)]
    shard = as_class_shard(name, as_group(name, group), n_local, num_classes, class_offset)
    # torch.compile plans memory itself
    inplace = inplace and not torch.compiler.is_compiling()
    logits = class_axis_last(donated(input) if inplace else input)
    target = class_axis_last(target) if target.is_floating_point() else target
    target, ignored = reference.without_ignored(target, options.ignore_index)
    weight = None if weight is None else weight.to(compute_dtype(input.dtype))
    row_options = RowOptions(
        *(name, options.label_smoothing > 0, with_entropy),
        *(options.logit_scale, options.softcap, inplace),
    )
    rows, shard = vocab_parallel_rows(logits, target, weight, shard, row_options)
    args = (weight is not None, shard.num_classes, denominator, options)
    loss = loss_of_rows(loss_terms(rows, ignored, *args), rows, options)
    return loss.to(loss_dtype(input)), rows
