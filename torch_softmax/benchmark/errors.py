"""Faults that the user can mend: told in one line, without a traceback."""


class UserError(Exception):
    """A flag, a file or a missing package is at fault."""

    exit_code = 2


class DeviceError(UserError):
    """The device that was asked for is not there."""

    exit_code = 3
