"""Transforms that would need further collectives are refused by name."""

from torch.autograd import forward_ad

from torch_softmax._ops.registration import is_plain_reverse_mode


def check_reverse_mode(function: str) -> None:
    """Raise RuntimeError under torch.func, in forward mode and while a program is exported."""
    if forward_ad._current_level >= 0 or not is_plain_reverse_mode():
        raise RuntimeError(
            f"{function} has derivatives in reverse mode only: it works neither under torch.func "
            "nor in forward mode, and cannot be exported"
        )
