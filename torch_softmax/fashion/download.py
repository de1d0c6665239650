"""The download of Fashion-MNIST, by torchvision."""

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from torch_softmax.fashion.errors import NoDataError, one_line

TIMEOUT_SECONDS = 10


def download_fashion_mnist(folder: Path, names: Iterable[str]) -> None:
    """Let torchvision download the files; stop when no byte arrives for ``TIMEOUT_SECONDS``.

    A name server or a proxy that never answers can block the call for minutes, whatever timeout
    its socket has, so a thread that can be abandoned makes the call.
    """
    try:
        from torchvision.datasets import FashionMNIST
    # a torchvision built for another torch fails with RuntimeError or AttributeError
    except Exception as error:
        raise NoDataError(f"torchvision does not import ({one_line(error)})") from error
    failures: SimpleQueue[str] = SimpleQueue()

    def download(root: str) -> None:
        try:
            FashionMNIST(root, download=True)
            failures.put("")
        except Exception as error:
            failures.put(one_line(error))

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as unfinished:
        thread = Thread(target=download, args=(unfinished,), daemon=True)
        thread.start()
        wait_while_growing(Path(unfinished), thread)
        if failure := failures.get():
            raise NoDataError(failure)
        # only a complete download leaves the temporary folder
        for name in names:
            os.replace(Path(unfinished, "FashionMNIST", "raw", name), folder / name)


def wait_while_growing(folder: Path, thread: Thread) -> None:
    """Return when the thread ends; raise when the folder it fills stops growing."""
    n_bytes, deadline = 0, time.monotonic() + TIMEOUT_SECONDS
    while thread.is_alive():
        thread.join(timeout=0.2)
        n_bytes_before, n_bytes = n_bytes, sum(path.stat().st_size for path in folder.rglob("*"))
        if n_bytes > n_bytes_before:
            deadline = time.monotonic() + TIMEOUT_SECONDS
        elif time.monotonic() > deadline:
            raise NoDataError(f"no byte arrived for {TIMEOUT_SECONDS} seconds")
