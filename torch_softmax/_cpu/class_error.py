"""The error for a target that is not a class."""


def class_error(target: int | float, n_classes: int) -> IndexError:
    """The error for ``target``, to be raised by the caller."""
    return IndexError(
        f"cross_entropy needs target in [0, {n_classes}) or equal to ignore_index, got {target}"
    )
