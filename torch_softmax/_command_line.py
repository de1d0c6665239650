"""The command line of the programs of this package: flags, errors in one line, exit codes."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, NoReturn


class UserError(Exception):
    """A flag, a file or a missing package is at fault: reported in one line, no traceback."""

    exit_code = 2


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds its default to the help of a flag, unless the help names it or it is None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that shows defaults and raises :class:`UserError`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=DefaultsFormatter, allow_abbrev=False, **settings)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse unknown flags here, where the flags of a subcommand are known."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = did_you_mean(unknown[0], self._option_string_actions)
            self.error(f"unknown argument {unknown[0]}{hint}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def did_you_mean(text: str, choices: Iterable[str]) -> str:
    """The choice that a mistyped word resembles, as the end of an error message."""
    resembling = difflib.get_close_matches(text.partition("=")[0], list(choices), n=1)
    return "".join(f"; did you mean {choice}?" for choice in resembling)


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A type for ``add_argument``: integers from ``least`` to ``most``."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"needs a number from {least} to {most}, got {text!r}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """A type for ``add_argument``: finite numbers above 0."""
    with suppress(ValueError):
        if 0 < float(text) < inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"needs a finite number above 0, got {text!r}")


def run_program(name: str, main: Callable[[], int]) -> int:
    """The exit code of a program; an error of the user's becomes one line on stderr."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # the reader of the output is gone: discard what Python flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        # torchrun starts one process per rank, and the line is the same in all
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
