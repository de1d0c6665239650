"""Several processes under torchrun: they share the work, and end and restart together."""

import json
import signal
import sys
import time
from functools import partial

import pytest
import torch
from example_runs import RUN_WITH_FAULTS, SMALL, run_and_read_error, script

import train_fashion
from torch_softmax.fashion import devices
from torch_softmax.fashion.checkpoint import load_checkpoint

# an odd number of test images, which two processes cannot halve
IN_TWO = [*SMALL, "--test-size", "101", "--precision", "fp32", "--epochs", "2"]


def start_torchrun(folder, *argv, faults="", restarts=0):
    """Start the script in two processes, with faults in the second of them."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs a PyTorch with gloo")
    file = folder / "faults.py"
    file.write_text(RUN_WITH_FAULTS)
    start = "from torch.distributed.run import main\nmain()"
    flags = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return script(start, *flags, str(file), *IN_TWO, *argv, FAULTS=faults, FAULTY_RANK="1")


@pytest.fixture
def torchrun(tmp_path):
    return partial(start_torchrun, tmp_path)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    """The folder and the output of a run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("shared")
    process = start_torchrun(folder, "--out", str(folder / "run"))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Warning" not in errors
    return folder / "run", output


def digest_of(output):
    return output.splitlines()[-1].split()[-3]


def test_processes_train_like_one(shared_run, tmp_path):
    folder, output = shared_run
    # one process prints
    assert len(output.splitlines()) == 11
    alone = train_fashion.main([*IN_TWO, "--out", str(tmp_path / "alone")])
    losses = load_checkpoint(folder / "checkpoint.pt")["run"]["step_losses"]
    # the same batches, but each process draws its own augmentation and normalizes its own shard
    assert losses[0] == pytest.approx(alone.step_losses[0], abs=1e-5)
    assert sum(losses[-5:]) == pytest.approx(sum(alone.step_losses[-5:]), rel=0.25)


def test_processes_count_each_test_image_once(shared_run):
    folder, _ = shared_run
    measures = json.loads((folder / "result.json").read_text())["measures"]
    alone = train_fashion.main(["evaluate", "--checkpoint", str(folder)])
    assert alone["accuracy"] == measures["accuracy"]
    assert alone == pytest.approx(measures, rel=1e-4)


def test_processes_end_when_one_dies_and_resume_to_the_same_weights(shared_run, torchrun, tmp_path):
    folder = ["--out", str(tmp_path / "killed")]
    process = torchrun(*folder, faults="SIGKILL@13")
    start = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert time.monotonic() - start < 120
    assert "SIGKILL" in errors
    process = torchrun(*folder, "--resume")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert digest_of(output) == digest_of(shared_run[1])


def test_processes_that_torchrun_restarts_continue_their_run(
    shared_run, torchrun, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # before there is a checkpoint, and in the first epoch
    process = torchrun(faults="SIGKILL@-1,SIGKILL@3", restarts=2)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert digest_of(output) == digest_of(shared_run[1])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["1"]
    assert (tmp_path / "runs" / "1" / "result.json").exists()


def test_processes_stop_after_the_same_step_on_sigterm(torchrun, tmp_path):
    process = torchrun("--epochs", "1000", "--out", str(tmp_path / "run"))
    while "epoch  1/1000" not in process.stdout.readline():
        pass
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert time.monotonic() - start < 10
    assert process.returncode == 1
    step = len(load_checkpoint(tmp_path / "run" / "checkpoint.pt")["run"]["step_losses"])
    assert f"after step {step} of 10000" in errors


def test_processes_end_when_the_loss_of_one_is_not_finite(torchrun, tmp_path):
    process = torchrun("--out", str(tmp_path / "run"), faults="nan")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "LossError: training needs a finite loss, got nan at step 1" in errors
    # what was saved before the first step
    content = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert content["run"]["step_losses"] == []
    assert not (tmp_path / "run" / "checkpoint.previous.pt").exists()


def test_processes_need_a_batch_that_they_can_share(capsys, monkeypatch):
    monkeypatch.setattr(devices, "world_size", lambda: 2)
    code, line = run_and_read_error(capsys, *SMALL, "--batch-size", "31")
    assert code == 2
    assert "--batch-size needs a multiple of the 2 processes, got 31" in line


@pytest.mark.parametrize("argv", [["--help"], ["--epochs", "0"]])
def test_processes_but_the_first_print_neither_help_nor_errors(capsys, monkeypatch, argv):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["train_fashion.py", *argv])
    try:
        assert train_fashion.run() == 2
    except SystemExit as ending:
        assert ending.code == 0
    assert capsys.readouterr() == ("", "")
