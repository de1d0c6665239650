"""The error for a target that is no class."""


def class_error(target: int | float, n_classes: int) -> IndexError:
    """An error to raise."""
    return IndexError(
        f"cross_entropy needs target in [0, {n_classes}) or equal to ignore_index, got {target}"
    )
