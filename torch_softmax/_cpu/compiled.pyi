from torch import Tensor

def cross_entropy(
    logits: Tensor,
    dlogits: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    is_mean: bool,
    label_smoothing: float,
    z_loss: float,
    n_threads: int,
    /,
) -> float | int:
    """The loss; or, as an int, a target that is no class, and nothing has been written.

    Logits and dlogits, of one dtype and shape, have up to three axes, the classes last. The others
    are contiguous, and their dtypes and shapes are not checked: an int64 target of each row, and a
    float32 weight of each class.
    """

def rows_at_once(logits: Tensor, dlogits: Tensor | None, /) -> int:
    """Rows that a thread takes at once; one, where their classes make up vectors."""
