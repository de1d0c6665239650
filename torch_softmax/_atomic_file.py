"""Files that are replaced in one step, for the programs of this package."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Replace a file: a reader, or a crash at any moment, finds the old content or the new.

    The content goes to ``path`` + ".unfinished" first, so a file has one writer at a time.

    Args:
        path: The file to write.
        content: Its new content.
        previous: Where to move the old file; None deletes it.

    Raises:
        OSError: The content cannot be written; the old file is still there.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    # without this, a power cut could undo the renaming
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
