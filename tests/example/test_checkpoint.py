"""Checkpoints: what a run leaves, what survives a stop, and what is refused."""

import csv
import itertools
import os
import random
import resource
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from example_runs import (
    RUN_WITH_FAULTS,
    SMALL,
    empty,
    flip_bit,
    run_and_read_error,
    script,
    truncate,
)

import train_fashion
from torch_softmax.fashion.checkpoint import load_checkpoint, save_checkpoint
from torch_softmax.fashion.errors import CheckpointError

THREE_EPOCHS = [*SMALL, "--epochs", "3"]


def resume(folder, *argv):
    return train_fashion.main([*THREE_EPOCHS, "--resume", "--out", str(folder), *argv])


def test_run_that_is_killed_repeatedly_ends_with_the_same_weights(finished_run, tmp_path):
    seed = random.randrange(10**6)
    print(f"steps drawn with seed {seed}")
    argv = [*THREE_EPOCHS, "--save-every", "2", "--out", str(tmp_path)]
    # the first time before any save but that of the untrained net
    for number, step in enumerate([1, *random.Random(seed).sample(range(12), 2)]):
        more = ["--resume"][: number > 0]
        process = script(RUN_WITH_FAULTS, *argv, *more, FAULTS=f"SIGKILL@{step}")
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    result = resume(tmp_path)
    assert result.digest == finished_run[1].digest
    assert result.step_losses == finished_run[1].step_losses
    assert result.epoch_accuracies == finished_run[1].epoch_accuracies


# saves three times, and is killed at each of the calls of a save, in a child each
KILL_IN_A_SAVE = """
import os, signal, sys
from pathlib import Path
from torch_softmax.fashion.checkpoint import save_checkpoint

folder = Path(sys.argv[1])

def kill_at(name, fatal_call):
    function, calls = getattr(os, name), []
    def fatal(*args):
        calls.append(args)
        if len(calls) == fatal_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    setattr(os, name, fatal)

for name, call in (("fsync", 3), ("fsync", 5), ("fsync", 6), ("replace", 4), ("replace", 5)):
    child = os.fork()
    if child == 0:
        run = folder / f"{name} {call}"
        run.mkdir()
        kill_at(name, call)
        for number in range(3):
            save_checkpoint(run, {"settings": {}, "run": {"number": number}})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, (name, call)
"""


def test_run_that_is_killed_in_a_save_has_a_good_checkpoint(tmp_path):
    (tmp_path / "runs").mkdir()
    process = script(KILL_IN_A_SAVE, str(tmp_path / "runs"))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    newest = {}
    for folder in (tmp_path / "runs").iterdir():
        found = [path for path in folder.iterdir() if path.suffix == ".pt"]
        newest[folder.name] = max(load_checkpoint(path)["run"]["number"] for path in found)
    # during the write of the second and third save, and between and after their renamings
    assert newest == {"fsync 3": 0, "fsync 5": 1, "fsync 6": 2, "replace 4": 1, "replace 5": 1}


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "ctrl-c"]
)
def test_run_that_is_stopped_completes_its_step_and_resumes_to_the_same_weights(
    capsys, finished_run, tmp_path, monkeypatch, number, exit_code
):
    augment, calls = train_fashion.augment, itertools.count()

    def augment_with_signal(*args):
        if next(calls) == 13:
            # torchrun passes on the SIGTERM that a service manager sends to all processes
            for _ in range(1 + (number == signal.SIGTERM)):
                os.kill(os.getpid(), number)
        return augment(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train_fashion, "augment", augment_with_signal)
        assert train_fashion.run([*THREE_EPOCHS, "--out", str(tmp_path)]) == exit_code
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert number.name in errors and "after step 14 of 30" in errors
    losses = load_checkpoint(tmp_path / "checkpoint.pt")["run"]["step_losses"]
    assert len(losses) == 14
    with open(tmp_path / "metrics.csv", newline="") as file:
        (epoch,) = csv.DictReader(file)
    assert float(epoch["train_loss"]) == pytest.approx(sum(losses[:10]) / 10)
    assert resume(tmp_path).digest == finished_run[1].digest


def test_run_that_is_interrupted_exits_with_130():
    process = script(train_fashion.__file__, *SMALL, "--epochs", "100000")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.startswith("train_fashion.py: ") and errors.count("\n") == 1


def test_resuming_a_finished_run_changes_nothing(finished_run, run_folder):
    assert resume(run_folder)._replace(source="") == finished_run[1]._replace(source="")


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "1"],
        ["--epochs", "4"],
        ["--batch-size", "16"],
        ["--lr", "0.001"],
        ["--loss", "torch"],
        ["--recipe", "best"],
        ["--train-size", "319"],
        ["--test-size", "101"],
        ["--compile", "True"],
    ],
)
def test_resuming_with_other_settings_is_refused(capsys, run_folder, argv):
    flags = [flag for flag in argv if flag != "True"]
    code, line = run_and_read_error(
        capsys, *THREE_EPOCHS, "--resume", "--out", str(run_folder), *flags
    )
    assert code == 2
    assert argv[0] in line and argv[1] in line


def damages():
    """Each way to damage a checkpoint."""
    for at in (0, 0.5, 1):
        yield pytest.param(partial(flip_bit, at=at), id=f"bit at {at:.0%}")
    yield from (truncate, empty, Path.unlink)


@pytest.mark.parametrize("damage", [*damages()])
def test_damaged_checkpoint_gives_way_to_the_previous_one(capsys, finished_run, run_folder, damage):
    damage(run_folder / "checkpoint.pt")
    before = {path: path.read_bytes() for path in run_folder.iterdir()}
    evaluated = train_fashion.main(["evaluate", "--checkpoint", str(run_folder)])
    assert "checkpoint.previous.pt is used instead" in capsys.readouterr().out.splitlines()[0]
    assert {path: path.read_bytes() for path in run_folder.iterdir()} == before
    result = resume(run_folder)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert str(run_folder / "checkpoint.pt") in first_line
    assert str(run_folder / "checkpoint.previous.pt") in first_line
    assert result.digest == finished_run[1].digest
    # the previous checkpoint has the same weights, and no calibration yet
    assert evaluated["accuracy"] == result.mirrored_accuracy
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        load_checkpoint(run_folder / name)


@pytest.mark.parametrize("damage", [*damages()])
def test_damaged_checkpoints_without_a_good_one_are_refused(capsys, run_folder, damage):
    for path in run_folder.iterdir():
        damage(path)
    code, line = run_and_read_error(capsys, *THREE_EPOCHS, "--resume", "--out", str(run_folder))
    assert code == 3
    assert str(run_folder / "checkpoint") in line


class Payload:
    """Unpickled without a check, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_malicious_checkpoint_is_refused_and_not_run(capsys, run_folder, tmp_path):
    save_checkpoint(run_folder, {"settings": Payload(str(tmp_path / "made"))})
    (run_folder / "checkpoint.previous.pt").unlink()
    code, line = run_and_read_error(capsys, *THREE_EPOCHS, "--resume", "--out", str(run_folder))
    assert code == 3
    assert "refused" in line
    assert not (tmp_path / "made").exists()


def test_checkpoint_of_something_else_is_refused(capsys, run_folder):
    save_checkpoint(run_folder, {"weights": torch.zeros(3)})
    (run_folder / "checkpoint.previous.pt").unlink()
    code, line = run_and_read_error(capsys, *THREE_EPOCHS, "--resume", "--out", str(run_folder))
    assert code == 3
    assert str(run_folder / "checkpoint.pt") in line


def test_checkpoint_of_another_version_is_refused(capsys, run_folder):
    content = load_checkpoint(run_folder / "checkpoint.pt")
    del content["run"]["epoch_losses"], content["calibration"]["temperature"]
    save_checkpoint(run_folder, content)
    for argv in (
        ["evaluate", "--checkpoint", str(run_folder)],
        [*THREE_EPOCHS, "--resume", "--out", str(run_folder)],
    ):
        code, line = run_and_read_error(capsys, *argv)
        assert code == 3
        assert "another version" in line


def test_full_disk_leaves_the_checkpoint_that_was_there(run_folder):
    before = (run_folder / "checkpoint.pt").read_bytes()
    (run_folder / "checkpoint.pt.unfinished").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(run_folder, {"weights": torch.zeros(3)})
    assert (run_folder / "checkpoint.pt").read_bytes() == before
    assert not (run_folder / "checkpoint.pt.unfinished").is_symlink()


def test_full_disk_ends_a_run_in_one_line(capsys, tmp_path):
    folder = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        code = train_fashion.run([*SMALL, "--out", str(folder)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = capsys.readouterr().err
    assert code == 3
    assert errors.count("\n") == 1 and str(folder / "checkpoint.pt") in errors
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("out", ["/dev/null/run", "/proc/run", __file__])
def test_folder_that_cannot_be_written_is_refused(capsys, out):
    code, line = run_and_read_error(capsys, *SMALL, "--out", out)
    assert code == 2
    assert "--out" in line and out in line


def test_folder_of_another_run_is_refused(capsys, run_folder):
    code, line = run_and_read_error(capsys, *SMALL, "--out", str(run_folder))
    assert code == 2
    assert str(run_folder) in line and "--resume" in line


def test_folders_of_runs_are_numbered_and_the_last_one_resumes(working_folder):
    first, second = (train_fashion.main([*SMALL, "--seed", seed]) for seed in "01")
    assert first.digest != second.digest
    assert train_fashion.main([*SMALL, "--seed", "1", "--resume"]).digest == second.digest
    assert [path.name for path in sorted((working_folder / "runs").iterdir())] == ["1", "2"]


def test_missing_checkpoint_is_refused(capsys):
    for argv in (["evaluate"], [*SMALL, "--resume"]):
        code, line = run_and_read_error(capsys, *argv)
        assert code == 3
        assert "runs/1/checkpoint.pt" in line
