"""Checkpoints: replaced in one step, checked bit by bit, and free of code."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_softmax._atomic_file import write_atomically
from torch_softmax.fashion.errors import CheckpointError, one_line
from torch_softmax.fashion.train_state import log

CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoint.pt", "checkpoint.previous.pt"
DIGEST_BYTES = 32


def write_file(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Replace a file of a run; a full disk leaves the old one."""
    try:
        write_atomically(path, content, previous)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write the checkpoint, followed by its SHA-256, and keep the one before."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    written = buffer.getvalue()
    written += hashlib.sha256(written).digest()
    write_file(folder / CHECKPOINT, written, folder / PREVIOUS_CHECKPOINT)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, every bit of it checked."""
    try:
        written = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    written, digest = written[:-DIGEST_BYTES], written[-DIGEST_BYTES:]
    if hashlib.sha256(written).digest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not match its content")
    try:
        content = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    # torch.load documents none of its exceptions
    except Exception as error:
        raise CheckpointError(f"{path} is refused: {one_line(error).partition('. ')[0]}") from error
    if not (isinstance(content, dict) and content.keys() >= {"settings", "run"}):
        raise CheckpointError(f"{path} is refused: it is no checkpoint of this script")
    return content


def load_newest(folder: Path, *, set_aside: bool = False) -> dict[str, Any]:
    """The newest good checkpoint of a folder; a damaged one may be set aside."""
    newest, previous = folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT
    try:
        return load_checkpoint(newest)
    except CheckpointError as error:
        if not previous.exists():
            raise
        content = load_checkpoint(previous)
        log(f"{error}; {previous} is used instead")
        # otherwise the next save would move the damaged one over the good one
        if set_aside:
            with suppress(FileNotFoundError):
                os.replace(newest, folder / "checkpoint.damaged.pt")
        return content


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint, good or damaged."""
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT))


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Refuse a checkpoint that lacks what the block looks for."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is of another version of this script") from error


def weights_digest(model: nn.Module) -> str:
    """The first half of the SHA-256 of all parameters and buffers."""
    sha256 = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(bytes(tensor.cpu().contiguous().flatten().view(torch.uint8).tolist()))
    return sha256.hexdigest()[:32]
