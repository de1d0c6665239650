from torch import Tensor

# Logits and tensors of their shape have up to three axes, the class axis last. A target holds one
# class per row, contiguous int64, or floating-point probabilities in the shape of logits. Tensors
# with one element per row are contiguous and float32, float64 for float64; their sizes are not
# checked. A result of type int is a target that is not a class; then nothing has been written.

def cross_entropy_loss(
    logits: Tensor,
    dlogits: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    denominator: float | None,
    dloss: float | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    n_threads: int,
    /,
) -> float | int:
    """The loss; the gradient, times dloss, goes to dlogits, which may be logits."""

def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    nll: Tensor,
    smooth: Tensor,
    target_weight: Tensor,
    lse: Tensor,
    entropy: Tensor,
    prediction: Tensor,
    softmax_stats: Tensor,
    n_threads: int,
    /,
) -> int | None:
    """The losses and statistics of each row; an empty output is not computed."""

def cross_entropy_backward(
    logits: Tensor,
    dlogits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    softmax_stats: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None,
    e: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    n_threads: int,
    /,
) -> None:
    """The gradient, written to dlogits, which may be logits."""

def tile_shape(logits: Tensor, dlogits: Tensor | None, /) -> tuple[int, int]:
    """Rows and classes of a tile; a tile of one row has its classes rounded up to vectors."""
