"""The folder of a run: runs/1, runs/2, ... or --out."""

import csv
import io
import itertools
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import distributed

from torch_softmax._command_line import UserError
from torch_softmax.fashion.checkpoint import (
    CHECKPOINT,
    has_checkpoint,
    load_newest,
    of_this_version,
    save_checkpoint,
    write_file,
)
from torch_softmax.fashion.errors import CheckpointError
from torch_softmax.fashion.processes import broadcast_from_rank0, first_difference
from torch_softmax.fashion.train_state import TrainState

RUNS = Path("runs")


def open_run(
    out: Path | None,
    resume: bool,
    settings: dict[str, Any],
    state: TrainState,
    store: distributed.Store | None,
) -> Path:
    """The folder of the run; with a checkpoint to continue from, the state becomes that one's."""
    folder, checkpoint = broadcast_from_rank0(lambda: find_run(out, resume, settings, store))
    if checkpoint is not None:
        with of_this_version(folder):
            state.load_state_dict(checkpoint["run"])
    return folder


def save_run(
    folder: Path, settings: dict[str, Any], state: TrainState, source: str, **more: Any
) -> None:
    """Write the checkpoint and the table of epochs."""
    content = {"settings": settings, "run": state.state_dict(), **more}
    broadcast_from_rank0(lambda: save_checkpoint(folder, content))
    table = describe_epochs(state, source)
    broadcast_from_rank0(lambda: write_file(folder / "metrics.csv", table.encode()))


def find_run(
    out: Path | None, resume: bool, settings: dict[str, Any], store: distributed.Store | None
) -> tuple[Path, dict[str, Any] | None]:
    """The folder of the run, and the checkpoint to continue from, if any.

    torchrun --max-restarts starts all processes again with the same flags; its store then says
    which run is theirs.
    """
    if store is not None and store.check(["folder"]):
        out = Path(store.get("folder").decode())
        resume = has_checkpoint(out)
    folder = open_folder(out, resume)
    if store is not None:
        store.set("folder", str(folder))
    if not resume:
        return folder, None
    checkpoint = load_newest(folder, set_aside=True)
    if difference := first_difference(checkpoint["settings"], settings):
        flag, needed, value = difference
        raise UserError(f"--resume needs {flag} {needed} of the checkpoint, got {value}")
    return folder, checkpoint


def open_folder(out: Path | None, resume: bool) -> Path:
    """The folder of the run, made and found writable before the work begins."""
    try:
        folder = out or (last_run() if resume else new_run())
        if resume and not folder.exists():
            raise CheckpointError(f"{folder / CHECKPOINT} cannot be read: no such folder")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--out needs a folder that can be written, got {error}") from error
    if not resume and has_checkpoint(folder):
        raise UserError(
            f"--out needs a folder without a checkpoint, got {folder}: "
            "name another one, or continue from its checkpoint with --resume"
        )
    return folder


def new_run() -> Path:
    """Make the first of the folders runs/1, runs/2, ... that does not exist."""
    for number in itertools.count(1):
        with suppress(FileExistsError):
            folder = RUNS / str(number)
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("not reached: numbers do not end")


def last_run() -> Path:
    """The last of the folders runs/1, runs/2, ... that has a checkpoint."""
    names = [path.parent.name for path in RUNS.glob("*/checkpoint*.pt")]
    return RUNS / str(max((int(name) for name in names if name.isdecimal()), default=1))


def describe_epochs(state: TrainState, source: str) -> str:
    """The loss and accuracy of each epoch as CSV."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["epoch", "train_loss", "test_accuracy", "data"])
    rows.writerows([*epoch.values(), source] for epoch in state.history())
    return table.getvalue()
