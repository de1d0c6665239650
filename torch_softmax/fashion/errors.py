"""Errors that end the example in one line, each with its exit code."""

import signal

from torch_softmax._command_line import UserError


class DataError(UserError):
    """Files of the data set, or pictures, are missing or damaged."""

    exit_code = 3


class NoDataError(DataError):
    """No source has the data set: the only error for which drawn garments may stand in."""


class CheckpointError(UserError):
    """A checkpoint is missing or damaged, or cannot be written."""

    exit_code = 3


class LossError(UserError):
    """The loss is not finite."""

    exit_code = 4


class StoppedError(UserError):
    """SIGTERM or Ctrl-C stopped the training after it saved a checkpoint."""

    def __init__(self, number: int, when: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {when}; --resume continues")
        self.exit_code = 128 + number


def one_line(error: Exception) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
