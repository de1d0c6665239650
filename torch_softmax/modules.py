"""Module forms of :mod:`torch_softmax.functional`, which hold its options.

They are subclasses of PyTorch's modules, so ``isinstance`` checks accept them, and their
constructors take the arguments of PyTorch's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from torch_softmax import functional


class Softmax(nn.Softmax):
    """Module form of :func:`torch_softmax.softmax`; calling it with ``dim=None`` raises."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim)  # type: ignore[arg-type]


class LogSoftmax(nn.LogSoftmax):
    """Module form of :func:`torch_softmax.log_softmax`; calling it with ``dim=None`` raises."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim)  # type: ignore[arg-type]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Module form of :func:`torch_softmax.cross_entropy`.

    ``weight`` is a buffer, so ``.to(device)`` moves it and ``state_dict`` contains it.
    ``size_average`` and ``reduce`` are PyTorch's deprecated forms of ``reduction``, with PyTorch's
    warning. ``denominator`` changes from batch to batch, so it is an argument of the call.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: functional.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.inplace = inplace

    def forward(
        self, input: Tensor, target: Tensor, *, denominator: float | Tensor | None = None
    ) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,  # type: ignore[arg-type]
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            denominator=denominator,
            inplace=self.inplace,
        )

    def extra_repr(self) -> str:
        """The options that ``repr`` shows."""
        return (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}, z_loss={self.z_loss}, "
            f"softcap={self.softcap}, logit_scale={self.logit_scale}, inplace={self.inplace}"
        )


class LinearCrossEntropyLoss(_WeightedLoss):
    """A linear layer, ``linear``, and :func:`torch_softmax.linear_cross_entropy` of its logits.

    Its parameters and their names are those of ``torch.nn.LinearCrossEntropyLoss`` (PyTorch 2.14).
    For a layer that is tied to an embedding: ``loss.linear.weight = embedding.weight``. With
    ``fully_shard`` or DistributedDataParallel wrap this module or what holds it, not ``linear``,
    which is not called.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: functional.Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        logits_dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(weight, reduction=reduction)
        if isinstance(out_features, int):
            raise TypeError(
                "LinearCrossEntropyLoss needs out_features to be a tuple of sizes, "
                f"got {out_features}"
            )
        self.num_classes = num_classes
        self.out_features = out_features
        # two axes, as checkpoints and optimizers know them
        n_logits = math.prod(out_features, start=num_classes)
        self.linear = nn.Linear(in_features, n_logits, bias, device=device, dtype=dtype)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.logits_dtype = logits_dtype
        self.chunk_size = chunk_size

    def forward(
        self, input: Tensor, target: Tensor, *, denominator: float | Tensor | None = None
    ) -> Tensor:
        shape = (self.num_classes, *self.out_features)
        weight: Tensor = self.linear.weight
        bias: Tensor | None = self.linear.bias
        if self.out_features:
            weight = weight.unflatten(0, shape)
            bias = None if bias is None else bias.unflatten(0, shape)
        return functional.linear_cross_entropy(
            input,
            weight,
            target,
            linear_bias=bias,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,  # type: ignore[arg-type]
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            denominator=denominator,
            logits_dtype=self.logits_dtype,
            chunk_size=self.chunk_size,
        )

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return (
            f"num_classes={self.num_classes}, out_features={self.out_features}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}, z_loss={self.z_loss}, "
            f"softcap={self.softcap}, logit_scale={self.logit_scale}, "
            f"logits_dtype={self.logits_dtype}, chunk_size={self.chunk_size}"
        )
