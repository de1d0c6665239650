"""SIGTERM and Ctrl-C, deferred until a training step is complete."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C instead of ending the process."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # a second Ctrl-C ends the run at once; a second SIGTERM does not, because torchrun passes
        # on what a service manager sends to all processes
        if number == signal.SIGINT:
            signal.signal(number, handlers[number])

    numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
