"""The example: it learns, says what it measured on which data, and refuses in one line."""

import contextlib
import csv
import functools
import gc
import gzip
import hashlib
import http.server
import json
import math
import os
import pty
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import torch_softmax.report
import train_fashion
from torch_softmax._ops import registration

ROOT = Path(train_fashion.__file__).parent
SMALL = ["--dataset", "synthetic", "--train-size", "640", "--test-size", "200", "--device", "cpu"]
SMALL += ["--batch-size", "64", "--epochs", "1", "--no-report"]
DRAWN_PREFIX = "[drawn garments, not Fashion-MNIST] "


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """Runs are written into the working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def kernels_not_interpreted(monkeypatch):
    """The path that a user without a GPU gets; conftest chose the other one for this process."""
    monkeypatch.setattr(registration, "INTERPRETED", False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


# each save looks at all of them
N_HELD_OUT = 200


@pytest.fixture(autouse=True)
def few_held_out_images(monkeypatch):
    monkeypatch.setattr(train_fashion, "N_HELD_OUT", N_HELD_OUT)


@pytest.fixture
def small_files(tmp_path, monkeypatch):
    """A folder with files like Fashion-MNIST's, but few images, for which the script is told."""
    folder = tmp_path / "files"
    folder.mkdir()
    for split, count in (("train", N_HELD_OUT + 640), ("t10k", 200)):
        images, labels = train_fashion.draw_garments(count, seed=count)
        for kind, magic, data in (
            ("images-idx3", 0x803, images[:, 0]),
            ("labels-idx1", 0x801, labels),
        ):
            header = struct.pack(f">{1 + data.ndim}i", magic, *data.shape)
            content = header + bytes(data.flatten().tolist())
            (folder / f"{split}-{kind}-ubyte").write_bytes(content)
    sha256 = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert sha256.keys() == train_fashion.SHA256_OF_FILES.keys()
    monkeypatch.setattr(train_fashion, "SHA256_OF_FILES", sha256)
    return folder


@pytest.fixture
def no_local_data(tmp_path, monkeypatch):
    """Neither Debian's files nor a cache; the cache folder that a download would fill."""
    monkeypatch.setattr(train_fashion, "DEBIAN_FOLDER", tmp_path / "no-debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "torch_softmax" / "fashion-mnist"
    # urllib leaves the socket of a failed request to the garbage collector, which warns of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def served_files(small_files, tmp_path, monkeypatch):
    """The .gz files that torchvision downloads in this test, from a server on loopback."""
    datasets = pytest.importorskip("torchvision.datasets")
    folder = tmp_path / "served"
    folder.mkdir()
    for path in small_files.iterdir():
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    resources = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())
    ]
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
        monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        yield folder
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def run_and_read_refusal(capsys, *argv):
    """The exit code and the one line that a run which never started to train leaves."""
    code = train_fashion.run(argv)
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("train_fashion.py: ") and errors.count("\n") == 1
    return code, errors


def script(code_or_file, *argv, stderr=subprocess.PIPE, **variables):
    """A process of its own that runs the script, or code that imports it."""
    command = ["-c", code_or_file] if " " in code_or_file else [ROOT / code_or_file]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, *command, *argv],
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        # a test run in the background of a shell passes on that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_training_learns():
    result = train_fashion.main([*SMALL, "--train-size", "1280", "--epochs", "8"])
    assert sum(result.step_losses[-10:]) < 0.3 * sum(result.step_losses[:10])
    assert result.accuracy > 0.6
    assert result.mirrored_accuracy > 0.6
    assert result.epoch_accuracies[-1] == result.accuracy
    assert len(result.epoch_accuracies) == 8
    assert len(result.step_losses) == 8 * 20
    assert result.source == "drawn garments, as asked"


def test_training_learns_in_bf16():
    # few images, because a processor without instructions for it takes a second for a hundred
    size = ["--train-size", "320", "--batch-size", "32", "--test-size", "50"]
    result = train_fashion.main([*SMALL, *size, "--epochs", "10", "--precision", "bf16"])
    assert sum(result.step_losses[-10:]) < 0.5 * sum(result.step_losses[:10])


def test_the_same_seed_does_the_same_run():
    first, second, other = (
        train_fashion.main([*SMALL, "--seed", seed]).step_losses for seed in ("5", "5", "6")
    )
    assert first == second
    assert first != other


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_compiled_training_is_the_same_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    argv = [*SMALL, "--precision", "fp32", "--epochs", "2"]
    eager = train_fashion.main(argv).step_losses
    compiled = train_fashion.main([*argv, "--compile", "--out", str(tmp_path / "whole")])
    # dropout draws from another stream
    assert compiled.step_losses[0] == pytest.approx(eager[0], abs=1e-5)
    assert sum(compiled.step_losses[-5:]) == pytest.approx(sum(eager[-5:]), rel=0.3)
    again = train_fashion.main([*argv, "--compile", "--resume", "--out", str(tmp_path / "whole")])
    assert again.digest == compiled.digest


def test_compile_is_refused_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, line = run_and_read_refusal(capsys, *SMALL, "--device", "cpu", "--compile")
    assert code == 2
    assert "--compile needs a C++ compiler" in line


@pytest.mark.parametrize("seed", ["0", "2"])
def test_both_losses_do_the_same_run_in_float32(seed):
    argv = [*SMALL, "--epochs", "5", "--precision", "fp32", "--seed", seed]
    ours = torch.tensor(train_fashion.main([*argv, "--loss", "fused"]).step_losses[:10])
    torchs = torch.tensor(train_fashion.main([*argv, "--loss", "torch"]).step_losses[:10])
    torch.testing.assert_close(ours[0], torchs[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours, torchs, atol=1e-3, rtol=0)


def test_loss_fused_is_ours_and_loss_torch_is_not():
    assert train_fashion.LOSSES["fused"] is train_fashion.torch_softmax.cross_entropy
    assert train_fashion.LOSSES["triton"] is train_fashion.torch_softmax.cross_entropy
    assert train_fashion.LOSSES["torch"] is F.cross_entropy


def test_loss_triton_runs_the_interpreted_kernels():
    code = (
        "import sys, train_fashion\n"
        f"train_fashion.N_HELD_OUT = {N_HELD_OUT}\n"
        "result = train_fashion.main(sys.argv[1:])\n"
        "assert 'torch_softmax._kernels' in sys.modules and len(result.step_losses) == 10\n"
    )
    process = script(code, *SMALL, "--loss", "triton", TRITON_INTERPRET="1")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "loss triton" in output


def test_loss_triton_is_refused_where_the_kernels_would_not_run(capsys):
    code, line = run_and_read_refusal(capsys, *SMALL, "--loss", "triton")
    assert code == 2
    assert "TRITON_INTERPRET=1" in line


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "two"], "--epochs"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "0"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "inf"], "--lr"),
        (["--lr", "fast"], "--lr"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "641"], "--batch-size"),
        (["--train-size", "58001"], "--train-size"),
        (["--test-size", "0"], "--test-size"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["--loss", "mse"], "--loss"),
        (["--precision", "fp16"], "--precision"),
        (["--dataset", "mnist"], "--dataset"),
        (["--data-dir", "."], "--data-dir"),
        (["--device", "nowhere"], "--device"),
        (["--device", "meta"], "--device"),
        (["--device", "cuda:99"], "--device"),
        (["--momentum", "0.9"], "--momentum"),
    ],
)
def test_a_wrong_value_is_refused_before_training(capsys, argv, named):
    code, line = run_and_read_refusal(capsys, *SMALL, *argv)
    assert code == 2
    assert named in line


def test_a_refusal_is_the_exit_code_of_the_script():
    process = script("train_fashion.py", *SMALL, "--epochs", "0")
    output, errors = process.communicate()
    assert process.returncode == 2
    assert output == ""
    assert errors.count("\n") == 1 and "--epochs" in errors


# with 10 steps in an epoch the loss tells, and with one the logits by which the epoch is judged
@pytest.mark.parametrize("train_size", ["640", "64"])
def test_a_loss_that_is_not_finite_stops_the_run(capsys, train_size):
    flags = ["--lr", "1e30", "--precision", "fp32", "--train-size", train_size]
    code = train_fashion.run([*SMALL, *flags])
    errors = capsys.readouterr().err
    assert code == 4
    assert errors.count("\n") == 1 and "finite" in errors


def test_an_interruption_exits_with_130():
    process = script("train_fashion.py", *SMALL, "--epochs", "100000")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.startswith("train_fashion.py: ") and errors.count("\n") == 1


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The folder of a run of 30 steps that nothing disturbed, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, run_on_the_cpu(*SMALL, "--epochs", "3", "--out", str(folder))


def run_on_the_cpu(*argv):
    """A run whose loss no interpreted kernel computes, for tests that share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "INTERPRETED", False)
        patch.delenv("TRITON_INTERPRET", raising=False)
        return train_fashion.main([*argv])


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of the folder of the finished run."""
    return shutil.copytree(finished_run[0], tmp_path / "copy")


def resume(folder, *argv):
    return train_fashion.main([*SMALL, "--epochs", "3", "--resume", "--out", str(folder), *argv])


def send_itself_a_signal(number, step, *argv):
    """A process that runs the script and gets the signal in the middle of a step."""
    code = (
        "import os, signal, sys, train_fashion\n"
        f"train_fashion.N_HELD_OUT = {N_HELD_OUT}\n"
        "number, fatal_step = (int(sys.argv.pop(1)) for _ in range(2))\n"
        "one_cycle = train_fashion.one_cycle\n"
        "def one_cycle_with_signal(step, n_steps):\n"
        "    if step == fatal_step:\n"
        "        os.kill(os.getpid(), number)\n"
        # as where torchrun passes on what a service manager sends to all processes
        "        number == signal.SIGTERM and os.kill(os.getpid(), number)\n"
        "    return one_cycle(step, n_steps)\n"
        "train_fashion.one_cycle = one_cycle_with_signal\n"
        "sys.exit(train_fashion.run(sys.argv[1:]))\n"
    )
    process = script(code, str(int(number)), str(step), *SMALL, "--epochs", "3", *argv)
    _, errors = process.communicate()
    return process.returncode, errors


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(finished_run, tmp_path):
    seed = random.randrange(10**6)
    print(f"steps drawn with seed {seed}")
    steps = sorted(random.Random(seed).sample(range(30), 3))
    for number, step in enumerate(steps):
        argv = ["--save-every", "2", "--out", str(tmp_path), *["--resume"][: number > 0]]
        code, errors = send_itself_a_signal(signal.SIGKILL, step, *argv)
        assert code == -signal.SIGKILL, errors
    result = resume(tmp_path)
    assert result.digest == finished_run[1].digest
    assert result.step_losses == finished_run[1].step_losses
    assert result.epoch_accuracies == finished_run[1].epoch_accuracies


# while the checkpoint is written, while the one before is moved, while this one takes its place
@pytest.mark.parametrize(
    ("function", "call"), [("fsync", 5), ("replace", 6), ("replace", 7)], ids=str
)
def test_a_run_that_is_killed_in_a_save_goes_on(finished_run, tmp_path, function, call):
    code = (
        "import os, signal, sys, train_fashion\n"
        f"train_fashion.N_HELD_OUT = {N_HELD_OUT}\n"
        "name, fatal_call = sys.argv.pop(1), int(sys.argv.pop(1))\n"
        "function, calls = getattr(os, name), []\n"
        "def fatal(*args):\n"
        "    calls.append(args)\n"
        "    if len(calls) == fatal_call:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return function(*args)\n"
        "setattr(os, name, fatal)\n"
        "sys.exit(train_fashion.run(sys.argv[1:]))\n"
    )
    argv = ["--epochs", "3", "--save-every", "2", "--out", str(tmp_path)]
    process = script(code, function, str(call), *SMALL, *argv)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert resume(tmp_path).digest == finished_run[1].digest


def test_a_run_that_is_killed_before_its_first_epoch_ends_goes_on(finished_run, tmp_path):
    code, errors = send_itself_a_signal(signal.SIGKILL, 3, "--out", str(tmp_path))
    assert code == -signal.SIGKILL, errors
    assert resume(tmp_path).digest == finished_run[1].digest


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "ctrl-c"]
)
def test_a_run_that_is_stopped_ends_its_step_and_goes_on_to_the_same_weights(
    finished_run, tmp_path, number, exit_code
):
    # after the processes agreed on the 14th step
    code, errors = send_itself_a_signal(number, 13, "--out", str(tmp_path))
    assert code == exit_code
    assert errors.count("\n") == 1
    assert number.name in errors and "after step 15 of 30" in errors
    state = train_fashion.load_checkpoint(tmp_path / "checkpoint.pt")
    losses = state["run"]["step_losses"]
    assert len(losses) == 15
    with open(tmp_path / "metrics.csv", newline="") as file:
        (epoch,) = csv.DictReader(file)
    assert float(epoch["train_loss"]) == pytest.approx(sum(losses[:10]) / 10)
    assert resume(tmp_path).digest == finished_run[1].digest


def test_a_finished_run_that_goes_on_changes_nothing(finished_run, run_folder):
    assert resume(run_folder)._replace(source="") == finished_run[1]._replace(source="")


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "1"],
        ["--epochs", "4"],
        ["--batch-size", "32"],
        ["--lr", "0.001"],
        ["--loss", "torch"],
        ["--train-size", "641"],
        ["--test-size", "201"],
        ["--precision", "bf16"],
        ["--compile", "True"],
    ],
)
def test_a_run_does_not_go_on_with_other_settings(capsys, tmp_path, argv):
    folder = str(tmp_path / "run")
    train_fashion.main([*SMALL, "--precision", "fp32", "--out", folder])
    capsys.readouterr()
    code, line = run_and_read_refusal(
        capsys,
        *(*SMALL, "--precision", "fp32", "--resume", "--out", folder),
        *(flag for flag in argv if flag != "True"),
    )
    assert code == 2
    assert argv[0] in line and argv[1] in line


def damaged_checkpoints():
    """Each way to damage a checkpoint: where its bit is flipped, or what else is done to it."""
    yield from (
        pytest.param(partial(flip_a_bit, at=at), id=f"bit at {at:.0%}")
        for at in (0, 0.1, 0.5, 0.9, 1)
    )
    yield from (truncate, empty, Path.unlink)


@pytest.mark.parametrize("damage", [*damaged_checkpoints()])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(capsys, finished_run, run_folder, damage):
    damage(run_folder / "checkpoint.pt")
    result = resume(run_folder)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert str(run_folder / "checkpoint.pt") in first_line
    assert str(run_folder / "checkpoint.previous.pt") in first_line
    assert result.digest == finished_run[1].digest
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        train_fashion.load_checkpoint(run_folder / name)


@pytest.mark.parametrize("damage", [*damaged_checkpoints()])
def test_without_a_good_checkpoint_a_run_does_not_go_on(capsys, run_folder, damage):
    for path in run_folder.iterdir():
        damage(path)
    code, line = run_and_read_refusal(
        capsys, *SMALL, "--epochs", "3", "--resume", "--out", str(run_folder)
    )
    assert code == 3
    assert str(run_folder / "checkpoint") in line


class Payload:
    """Unpickled without a check, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_malicious_checkpoint_is_refused_and_not_run(capsys, run_folder, tmp_path):
    train_fashion.save_checkpoint(run_folder, {"settings": Payload(str(tmp_path / "made"))})
    (run_folder / "checkpoint.previous.pt").unlink()
    code, line = run_and_read_refusal(
        capsys, *SMALL, "--epochs", "3", "--resume", "--out", str(run_folder)
    )
    assert code == 3
    assert "refused" in line
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_of_something_else_is_refused(capsys, run_folder):
    train_fashion.save_checkpoint(run_folder, {"weights": torch.zeros(3)})
    (run_folder / "checkpoint.previous.pt").unlink()
    code, line = run_and_read_refusal(
        capsys, *SMALL, "--epochs", "3", "--resume", "--out", str(run_folder)
    )
    assert code == 3
    assert str(run_folder / "checkpoint.pt") in line


def test_a_checkpoint_of_another_version_is_refused(capsys, run_folder):
    state = train_fashion.load_checkpoint(run_folder / "checkpoint.pt")
    del state["run"]["epoch_losses"], state["calibration"]["temperature"]
    train_fashion.save_checkpoint(run_folder, state)
    for argv in (
        ["evaluate", "--checkpoint", str(run_folder)],
        [*SMALL, "--epochs", "3", "--resume", "--out", str(run_folder)],
    ):
        code, line = run_and_read_refusal(capsys, *argv)
        assert code == 3
        assert "another version" in line


def test_a_full_disk_leaves_the_checkpoint_that_was_there(capsys, run_folder):
    before = (run_folder / "checkpoint.pt").read_bytes()
    (run_folder / "checkpoint.pt.unfinished").symlink_to("/dev/full")
    with pytest.raises(train_fashion.CheckpointError, match="No space left on device"):
        train_fashion.save_checkpoint(run_folder, {"weights": torch.zeros(3)})
    assert (run_folder / "checkpoint.pt").read_bytes() == before
    assert not (run_folder / "checkpoint.pt.unfinished").is_symlink()


def test_a_run_on_a_full_disk_ends_in_one_line(tmp_path):
    folder = tmp_path / "run"
    argv = [*SMALL, "--out", str(folder)]
    code = (
        "import resource, sys, train_fashion\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.exit(train_fashion.run(sys.argv[1:]))\n"
    )
    process = script(code, *argv)
    _, errors = process.communicate()
    assert process.returncode == 3
    assert errors.count("\n") == 1 and str(folder / "checkpoint.pt") in errors
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("out", ["/dev/null/run", "/proc/run", ""])
def test_a_folder_that_cannot_be_written_is_refused(capsys, out):
    code, line = run_and_read_refusal(capsys, *SMALL, "--out", out or __file__)
    assert code == 2
    assert "--out" in line and (out or __file__) in line


def test_a_new_run_does_not_write_over_another_one(capsys, run_folder):
    code, line = run_and_read_refusal(capsys, *SMALL, "--out", str(run_folder))
    assert code == 2
    assert str(run_folder) in line and "--resume" in line


def test_runs_are_numbered_and_the_last_one_goes_on(capsys, working_folder):
    first, second = (train_fashion.main([*SMALL, "--seed", seed]) for seed in "01")
    assert first.digest != second.digest
    assert train_fashion.main([*SMALL, "--seed", "1", "--resume"]).digest == second.digest
    assert [path.name for path in sorted((working_folder / "runs").iterdir())] == ["1", "2"]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_a_progress_bar_and_a_pipe_does_not(capfd, columns):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    process = script("train_fashion.py", *SMALL, "--epochs", "2", stderr=terminal)
    os.close(terminal)
    process.communicate()
    shown = b""
    # Linux reports the end of a terminal as an error
    with contextlib.suppress(OSError), os.fdopen(controller, "rb", buffering=0) as screen:
        while part := screen.read(4096):
            shown += part
    lines = [line for line in shown.decode().split("\r") if "test" in line]
    assert lines
    for line in lines:
        assert re.match(r"\[drawn\] epoch 2/2: .*images/s, \S+ left, loss \S+, test \S+%", line)
        assert len(line) <= columns
    train_fashion.main(SMALL)
    assert "\r" not in "".join(capfd.readouterr())


def test_every_line_about_drawn_garments_says_so(capsys):
    train_fashion.main(SMALL)
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert len(lines) == 10
    assert all(line.startswith(DRAWN_PREFIX) for line in lines)
    assert errors == ""


def test_no_line_about_fashion_mnist_says_that_it_is_drawn(capsys, small_files):
    files = ["--dataset", "auto", "--data-dir", str(small_files)]
    result = train_fashion.main([*SMALL, *files])
    output = capsys.readouterr().out
    assert result.source == f"Fashion-MNIST from {small_files}"
    assert str(small_files) in output
    assert "drawn" not in output


def test_the_examples_name_the_likeliest_and_the_true_class():
    probabilities = torch.eye(10)[[3, 9, 0]] * torch.tensor([[0.8], [0.5], [0.2]]) + 0.02
    lines = list(train_fashion.describe_examples(probabilities, torch.tensor([3, 8, 0])))
    assert lines[0].startswith("test image 0 (surest): Dress 82.0%, ")
    assert lines[1].startswith("test image 1 (middling): Ankle boot 52.0%, ")
    assert lines[1].endswith("true class: Bag")
    assert lines[2].startswith("test image 2 (least sure): T-shirt/top 22.0%, ")


@pytest.mark.skipif(
    not train_fashion.DEBIAN_FOLDER.exists(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_the_files_of_debian_pass_their_check(monkeypatch):
    # as they are split without a test
    monkeypatch.undo()
    data = train_fashion.load_data("fashion-mnist", None, 58_000, 10_000)
    assert data.train.images.shape == (58_000, 1, 28, 28)
    assert data.held_out.images.shape == (2_000, 1, 28, 28)
    assert data.test.images.shape == (10_000, 1, 28, 28)
    labels = torch.cat([data.train.labels, data.held_out.labels])
    assert labels.bincount().tolist() == [6000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    # published with the data set
    images = torch.cat([data.train.images, data.held_out.images])
    assert (images / 255).mean().item() == pytest.approx(0.28604, abs=1e-5)


@pytest.mark.parametrize("compressed", [False, True])
def test_images_and_labels_come_out_as_they_went_in(small_files, compressed):
    if compressed:
        for path in small_files.iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    drawn = train_fashion.draw_garments(N_HELD_OUT + 640, seed=N_HELD_OUT + 640)
    read = train_fashion.read_split(small_files, "train")
    assert torch.equal(read.images, drawn.images)
    assert torch.equal(read.labels, drawn.labels)


def label_as_200(path):
    content = bytearray(path.read_bytes())
    content[-1] = 200
    path.write_bytes(content)


def truncate_compressed(path):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()


def pretend_compressed(path):
    path.rename(f"{path}.gz")


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, flip_a_bit, label_as_200, truncate_compressed, pretend_compressed],
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_file_is_refused_by_name(capsys, small_files, name, damage):
    damage(small_files / name)
    files = ["--dataset", "auto", "--data-dir", str(small_files)]
    code, line = run_and_read_refusal(capsys, *SMALL, *files)
    assert code == 3
    assert str(small_files / name) in line
    assert train_fashion.SHA256_OF_FILES[name] in line


def test_a_missing_file_is_refused_by_name(capsys, small_files):
    (small_files / "t10k-labels-idx1-ubyte").unlink()
    files = ["--dataset", "auto", "--data-dir", str(small_files)]
    code, line = run_and_read_refusal(capsys, *SMALL, *files)
    assert code == 3
    assert str(small_files / "t10k-labels-idx1-ubyte") in line


def test_the_files_of_debian_are_found_first(small_files, monkeypatch):
    monkeypatch.setattr(train_fashion, "DEBIAN_FOLDER", small_files)
    result = train_fashion.main([*SMALL, "--dataset", "auto"])
    assert result.source == f"Fashion-MNIST from {small_files}"


def test_a_damaged_file_of_debian_is_refused_and_not_replaced(capsys, small_files, monkeypatch):
    flip_a_bit(small_files / "train-labels-idx1-ubyte")
    monkeypatch.setattr(train_fashion, "DEBIAN_FOLDER", small_files)
    code, line = run_and_read_refusal(capsys, *SMALL, "--dataset", "auto")
    assert code == 3
    assert str(small_files / "train-labels-idx1-ubyte") in line


def test_a_download_is_kept_and_checked(capfd, served_files, no_local_data):
    argv = [*SMALL, "--dataset", "fashion-mnist"]
    assert train_fashion.main(argv).source == f"Fashion-MNIST from {no_local_data}"
    names = {path.name for path in no_local_data.iterdir()}
    assert names == set(train_fashion.SHA256_OF_FILES)
    for path in served_files.iterdir():
        path.unlink()
    train_fashion.main(argv)
    flip_a_bit(no_local_data / "t10k-images-idx3-ubyte")
    capfd.readouterr()
    assert train_fashion.run(argv) == 3
    assert str(no_local_data / "t10k-images-idx3-ubyte") in capfd.readouterr().err


def test_an_incomplete_download_leaves_nothing(capfd, served_files, no_local_data):
    (served_files / "train-labels-idx1-ubyte.gz").unlink()
    assert train_fashion.run([*SMALL, "--dataset", "fashion-mnist"]) == 3
    assert list(no_local_data.iterdir()) == []
    reason = capfd.readouterr().err.splitlines()[-1]
    assert "train-labels-idx1-ubyte.gz" in reason and "404" in reason


def test_a_slow_download_is_not_given_up(capfd, served_files, no_local_data, monkeypatch):
    # each file starts late, though within the time, and all of them together take longer than it
    monkeypatch.setattr(train_fashion, "DOWNLOAD_PATIENCE_SECONDS", 1.0)
    answer = QuietHandler.do_GET
    monkeypatch.setattr(QuietHandler, "do_GET", lambda self: (time.sleep(0.25), answer(self)))
    start = time.monotonic()
    train_fashion.download_fashion_mnist(no_local_data)
    assert time.monotonic() - start > 1.5
    assert len(list(no_local_data.iterdir())) == 4


def test_no_network_is_told_with_the_way_to_get_the_data(capsys, no_local_data, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    # nothing listens on the port of a socket that is bound and not listening
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
        code, line = run_and_read_refusal(capsys, *SMALL, "--dataset", "fashion-mnist")
    assert code == 3
    assert address in line and "dataset-fashion-mnist" in line and "--data-dir" in line


def test_without_torchvision_the_garments_stand_in(capsys, no_local_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    result = train_fashion.main([*SMALL, "--dataset", "auto"])
    lines = capsys.readouterr().out.splitlines()
    assert result.source.startswith("drawn garments, because ")
    assert "torchvision does not import" in lines[0] and "--data-dir" in lines[0]
    assert all(line.startswith(DRAWN_PREFIX) for line in lines)


def test_a_network_that_never_answers_holds_nobody_for_20_seconds(tmp_path):
    pytest.importorskip("torchvision")
    code = (
        "import pathlib, sys, train_fashion\n"
        "train_fashion.DEBIAN_FOLDER = pathlib.Path('nowhere')\n"
        "sys.exit(train_fashion.run(sys.argv[1:]))\n"
    )
    # takes connections and never says a word
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        process = script(
            code,
            *SMALL,
            "--dataset",
            "auto",
            http_proxy=f"http://127.0.0.1:{silent.getsockname()[1]}",
            no_proxy="",
            XDG_CACHE_HOME=str(tmp_path),
        )
        first_line = process.stdout.readline()
        seconds = time.monotonic() - start
        output, errors = process.communicate()
    assert seconds < 20
    assert "no byte arrived" in first_line and "--data-dir" in first_line
    assert process.returncode == 0, errors
    assert all(line.startswith(DRAWN_PREFIX) for line in (first_line + output).splitlines())
    assert errors == ""


def test_garments_are_drawn_the_same_from_the_same_seed():
    first, second = (train_fashion.draw_garments(500, seed=3) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.images, train_fashion.draw_garments(500, seed=4).images)


def test_garments_are_balanced_and_varied():
    images, labels = train_fashion.draw_garments(1000, seed=0)
    assert images.shape == (1000, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [100] * 10
    assert len(images.flatten(1).unique(dim=0)) == 1000
    # neither blank nor full
    assert images.float().mean(dim=(1, 2, 3)).min() > 2
    assert (images > 128).float().mean(dim=(1, 2, 3)).max() < 0.6


@pytest.mark.parametrize(
    ("capabilities", "use_bf16"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_bf16": False}, False)],
)
def test_the_processor_decides_on_bf16(monkeypatch, capabilities, use_bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert train_fashion.choose_precision("auto", torch.device("cpu"))[0] is use_bf16


def test_logits_are_float32_in_every_precision():
    images = train_fashion.draw_garments(20, seed=0).images
    for use_bf16 in (True, False):
        model = train_fashion.Classifier(16, use_bf16=use_bf16)
        assert train_fashion.compute_logits(model, images).dtype == torch.float32


def test_half_of_the_images_are_mirrored():
    images = train_fashion.draw_garments(1000, seed=0).images
    flipped = train_fashion.flip_half(images)
    is_mirrored = (flipped == images.flip(-1)).flatten(1).all(dim=1)
    is_same = (flipped == images).flatten(1).all(dim=1)
    assert (is_mirrored | is_same).all()
    assert 400 < is_mirrored.sum() < 600


def test_a_rectangle_of_half_of_the_images_is_erased():
    images = torch.full((1000, 1, 28, 28), 7, dtype=torch.uint8)
    erased = train_fashion.erase_half(images) == 0
    assert 350 < erased.flatten(1).any(dim=1).sum() < 550
    assert erased.flatten(1).float().mean(dim=1).max() <= 0.3
    # as many pixels as the rows and the columns that have any span
    heights, widths = erased.any(dim=3).sum(dim=2), erased.any(dim=2).sum(dim=2)
    assert torch.equal(erased.flatten(1).sum(dim=1), (heights * widths).squeeze(1))


def test_the_best_recipe_trains_a_larger_net_that_evaluate_finds_again(capsys):
    argv = ["--recipe", "best", "--train-size", "128"]
    result = train_fashion.main([*SMALL, *argv])
    assert len(result.step_losses) == 2
    assert train_fashion.main(["evaluate"])["accuracy"] == result.mirrored_accuracy
    assert train_fashion.run([*SMALL, "--train-size", "128", "--resume"]) == 2
    assert "--recipe" in capsys.readouterr().err


@pytest.mark.parametrize("n_steps", [20, 2808])
def test_the_learning_rate_rises_and_falls_to_zero(n_steps):
    shares = torch.tensor([train_fashion.one_cycle(step, n_steps) for step in range(n_steps)])
    peak = int(shares.argmax())
    assert 0 < shares[0] <= 0.01 and 0 < shares[-1] < 0.1
    assert (shares[: peak + 1].diff() >= 0).all() and (shares[peak:].diff() <= 0).all()


def test_the_learning_rate_of_a_long_run_reaches_its_peak():
    assert max(train_fashion.one_cycle(step, 2808) for step in range(2808)) > 0.99


@pytest.fixture
def picture_file(tmp_path):
    """Writes pictures of the sixth drawn garment, each in another way, and gives their paths."""
    image = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    pixels = train_fashion.draw_garments(10, seed=0).images[5, 0]
    garment = image.frombytes("L", (28, 28), bytes(pixels.flatten().tolist()))
    photo = image.new("RGB", (200, 300), "white")
    photo.paste(ops.invert(garment.resize((140, 140))), (40, 100))
    turned = image.Exif()
    turned[0x0112] = 6
    cut_out = image.new("RGBA", (28, 28), (0, 0, 0, 0))
    cut_out.putalpha(garment)
    deep = image.frombytes("I;16", (28, 28), b"".join(bytes([0, v]) for v in garment.tobytes()))
    twelve_bits = b"".join((16 * v).to_bytes(2, "little") for v in garment.tobytes())
    neutral = image.new("L", photo.size, 128)
    pictures = {
        "grey.png": garment,
        "photo.jpg": photo,
        "photo.webp": photo,
        "turned.jpg": photo.rotate(90, expand=True),
        "cmyk.jpg": photo.convert("CMYK"),
        "palette.gif": photo.quantize(16),
        "palette.png": photo.quantize(16),
        "cut_out.png": cut_out,
        "cut_out_grey.png": cut_out.convert("LA"),
        "cut_out_palette.png": cut_out.quantize(16, method=image.Quantize.FASTOCTREE),
        "deep.png": deep,
        "deep.tiff": deep.convert("I"),
        "twelve_bits.png": image.frombytes("I;16", (28, 28), twelve_bits),
        "lab.tiff": image.merge("LAB", [photo.convert("L"), neutral, neutral]),
        "floats.tiff": deep.convert("F").point(lambda value: value * 1 / 65535 + 0),
        "bilevel.png": garment.point(lambda value: 255 * (value > 13)).convert("1"),
        "blank.png": image.new("L", (50, 50), 200),
        "noise.png": image.effect_noise((64, 64), 200),
    }

    def write(name):
        options = {"quality": 95} if name.endswith(("jpg", "webp")) else {}
        if name == "turned.jpg":
            options["exif"] = turned
        pictures[name].save(tmp_path / name, **options)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("photo.jpg", 12),
        ("photo.webp", 12),
        ("turned.jpg", 12),
        ("cmyk.jpg", 12),
        ("palette.gif", 12),
        ("palette.png", 12),
        ("cut_out.png", 0),
        ("cut_out_grey.png", 0),
        ("cut_out_palette.png", 12),
        ("deep.png", 1),
        ("deep.tiff", 1),
        ("twelve_bits.png", 1),
        ("lab.tiff", 12),
        ("floats.tiff", 1),
        ("bilevel.png", 60),
    ],
)
def test_a_picture_is_brought_into_the_form_of_the_data_set(picture_file, name, difference):
    expected, _ = train_fashion.read_picture(picture_file("grey.png"))
    found, is_plain = train_fashion.read_picture(picture_file(name))
    assert found.shape == (1, 28, 28) and found.dtype == torch.uint8
    assert is_plain
    inside = (found > 13)[0]
    assert max(inside.any(0).sum(), inside.any(1).sum()) >= 26
    assert (found.float() - expected.float()).abs().mean() <= difference


def test_a_blank_picture_is_black_and_noise_has_no_plain_background(picture_file):
    assert train_fashion.read_picture(picture_file("blank.png"))[0].max() == 0
    assert not train_fashion.read_picture(picture_file("noise.png"))[1]


def test_predict_names_the_likeliest_classes_and_cautions(capsys, finished_run, picture_file):
    checkpoint = ["--checkpoint", str(finished_run[0] / "checkpoint.pt"), "--device", "cpu"]
    files = [picture_file(name) for name in ("photo.jpg", "blank.png", "noise.png")]
    prediction = train_fashion.main(["predict", *files, *checkpoint])
    about_model, *lines = capsys.readouterr().out.splitlines()
    assert about_model == f"{DRAWN_PREFIX}model of {checkpoint[1]}, trained for 30 steps"
    assert prediction.probabilities.shape == (3, 10)
    for line, path in zip(lines, files, strict=True):
        assert line.startswith(f"{DRAWN_PREFIX}{path}: ")
        assert line.count("%") == 3 and "entropy" in line
    assert "unlike the training data" not in lines[0] and "plain background" not in lines[0]
    assert ("not sure" in lines[0]) == (prediction.confidence[0].item() < 0.6)
    assert "unlike the training data" in lines[1]
    assert "these numbers mean little" in lines[2]


needs_real_data = pytest.mark.skipif(
    not train_fashion.DEBIAN_FOLDER.exists(), reason="needs Debian's package dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """The folder of a short run on real data."""
    folder = tmp_path_factory.mktemp("real")
    flags = ["--train-size", "10000", "--test-size", "1000", "--epochs", "4", "--no-report"]
    run_on_the_cpu(*flags, "--device", "cpu", "--out", str(folder))
    return folder


@needs_real_data
def test_what_is_no_garment_is_unlike_the_training_data(real_run):
    image, draw = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageDraw")
    font = pytest.importorskip("PIL.ImageFont").load_default(28)
    data = train_fashion.load_data("fashion-mnist", None, 1, 10_000)
    model, calibration, *_ = train_fashion.load_model(real_run, torch.device("cpu"))
    assert calibration.is_unusual(model, data.test.images).float().mean() < 0.02
    noise = torch.randint(256, (100, 1, 28, 28), dtype=torch.uint8)
    assert calibration.is_unusual(model, noise).all()
    assert calibration.is_unusual(model, torch.zeros_like(noise)).all()
    signs = []
    for sign in "0123456789ABCDEFGHKMNOPQRSTUVWXYZ":
        picture = image.new("L", (28, 28))
        draw.Draw(picture).text((14, 14), sign, fill=255, font=font, anchor="mm")
        signs.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8))
    signs = torch.stack(signs).view(-1, 1, 28, 28)
    assert calibration.is_unusual(model, signs).float().mean() > 0.6


def draw_face(draw):
    draw.ellipse((20, 20, 180, 180), fill=60)
    draw.ellipse((60, 65, 85, 90), fill=255)
    draw.ellipse((115, 65, 140, 90), fill=255)
    draw.arc((60, 80, 140, 150), 20, 160, fill=255, width=10)


FILLED_SHAPES = {
    "circle": lambda draw: draw.ellipse((20, 20, 180, 180), fill=60),
    "ring": lambda draw: draw.ellipse((30, 30, 170, 170), outline=60, width=40),
    "triangle": lambda draw: draw.polygon([(100, 10), (190, 190), (10, 190)], fill=60),
    "diamond": lambda draw: draw.polygon([(100, 10), (190, 100), (100, 190), (10, 100)], fill=60),
    "face": draw_face,
}


@needs_real_data
def test_predict_tells_filled_shapes_from_garments(capsys, real_run, tmp_path):
    image, draw = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageDraw")
    for name, shape in FILLED_SHAPES.items():
        picture = image.new("L", (200, 200), 255)
        shape(draw.Draw(picture))
        picture.save(tmp_path / f"{name}.png")
    images = train_fashion.load_data("fashion-mnist", None, 1, 10_000).test.images[:20]
    for index, pixels in enumerate(images[:, 0].numpy()):
        image.fromarray(255 - pixels).resize((280, 280)).save(tmp_path / f"garment{index}.png")
    files = sorted(map(str, tmp_path.glob("*.png")))
    train_fashion.main(["predict", *files, "--checkpoint", str(real_run), "--device", "cpu"])
    _, *lines = capsys.readouterr().out.splitlines()
    unlike = ["unlike the training data" in line for line in lines]
    is_garment = ["garment" in file for file in files]
    assert sum(u for u, garment in zip(unlike, is_garment, strict=True) if garment) <= 2
    assert sum(u for u, garment in zip(unlike, is_garment, strict=True) if not garment) >= 4


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_file_that_is_no_picture_is_refused(capsys, finished_run, tmp_path, content):
    pytest.importorskip("PIL")
    (tmp_path / "file.png").write_bytes(content)
    code, line = run_and_read_refusal(
        capsys, "predict", str(tmp_path / "file.png"), "--checkpoint", str(finished_run[0])
    )
    assert code == 3
    assert str(tmp_path / "file.png") in line


def test_a_file_that_is_no_picture_leaves_the_others_their_answers(
    capsys, finished_run, picture_file, tmp_path
):
    pytest.importorskip("PIL")
    files = [str(tmp_path / "missing.png"), str(picture_file("grey.png"))]
    code = train_fashion.run(["predict", *files, "--checkpoint", str(finished_run[0])])
    output, errors = capsys.readouterr()
    assert code == 3
    assert files[1] in output and "entropy" in output
    assert files[0] in errors and errors.count("\n") == 1


def test_without_pillow_predict_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, line = run_and_read_refusal(capsys, "predict", "shirt.jpg")
    assert code == 2
    assert "pip install pillow" in line


def test_evaluate_measures_what_the_training_did(capsys, finished_run):
    checkpoint = ["--checkpoint", str(finished_run[0] / "checkpoint.pt"), "--device", "cpu"]
    measures = train_fashion.main(["evaluate", *checkpoint])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(DRAWN_PREFIX) for line in lines)
    assert f"{DRAWN_PREFIX}device cpu, as asked" in lines
    assert measures["accuracy"] == finished_run[1].mirrored_accuracy
    assert 0 < measures["Brier score"] < 1 and 0 < measures["calibration error"] < 1
    of_classes = [measures[f"accuracy of {name}"] for name in train_fashion.CLASSES]
    assert sum(of_classes) / 10 == pytest.approx(measures["accuracy"])
    assert measures == json.loads((finished_run[0] / "result.json").read_text())["measures"]


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, Path.unlink])
def test_evaluate_takes_the_checkpoint_before_a_damaged_one(capsys, run_folder, damage):
    damage(run_folder / "checkpoint.pt")
    before = {path: path.read_bytes() for path in run_folder.iterdir()}
    train_fashion.main(["evaluate", "--checkpoint", str(run_folder)])
    assert "checkpoint.previous.pt is used instead" in capsys.readouterr().out.splitlines()[0]
    assert {path: path.read_bytes() for path in run_folder.iterdir()} == before


def test_evaluate_measures_what_these_logits_are_worth():
    # three of four right
    probabilities = torch.tensor(
        [[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]
    )
    labels = torch.tensor([0, 0, 1, 1])
    # a temperature of 2, by which these logits are to be divided, gives the probabilities back
    measures = train_fashion.measure(2 * probabilities.log(), labels, 2.0)
    assert measures["accuracy"] == 0.75 and measures["temperature"] == 2
    assert measures["loss"] == pytest.approx(-math.log(0.8 * 0.5 * 0.8 * 0.2) / 4)
    assert measures["Brier score"] == pytest.approx((0.06 + 0.42 + 0.06 + 1.14) / 4)
    assert measures["entropy"] == pytest.approx(
        -(probabilities * probabilities.log()).sum().item() / 4
    )
    assert measures["accuracy of T-shirt/top"] == 1 and measures["accuracy of Trouser"] == 0.5


def test_evaluate_refuses_data_for_drawn_garments(capsys, run_folder):
    argv = ["evaluate", "--checkpoint", str(run_folder), "--data-dir", "."]
    code, line = run_and_read_refusal(capsys, *argv)
    assert code == 2
    assert "--data-dir" in line


def test_a_missing_checkpoint_is_refused(capsys, working_folder):
    for argv in (["evaluate"], [*SMALL, "--resume"]):
        code, line = run_and_read_refusal(capsys, *argv)
        assert code == 3
        assert "runs/1/checkpoint.pt" in line


def test_a_run_leaves_its_numbers_for_programs(finished_run):
    folder, result = finished_run
    content = json.loads((folder / "result.json").read_text())
    assert content["weights"] == result.digest
    assert content["data"].startswith("drawn garments")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test_accuracy"]) for row in rows] == result.epoch_accuracies
    assert [float(row["train_loss"]) for row in rows] == pytest.approx(
        [sum(result.step_losses[begin : begin + 10]) / 10 for begin in (0, 10, 20)]
    )
    assert content["machine"]["torch"] == torch.__version__
    assert content["machine"]["processes"] == 1
    assert content["measures"]["accuracy of the image alone"] == result.accuracy
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(row["data"].startswith("drawn garments") for row in rows)
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "metrics.csv",
        "result.json",
    }


def test_a_run_ends_with_a_report(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    argv = [flag for flag in SMALL if flag != "--no-report"]
    train_fashion.main([*argv, "--out", str(tmp_path / "run")])
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out
    assert "not Fashion-MNIST" in (tmp_path / "run" / "report.html").read_text()


def test_without_matplotlib_a_run_says_what_to_install(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch_softmax.report.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(torch_softmax.report, name.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train_fashion.main([flag for flag in SMALL if flag != "--no-report"])
    lines = capsys.readouterr().out.splitlines()
    (told,) = [number for number, line in enumerate(lines) if "pip install matplotlib" in line]
    (first_epoch,) = [number for number, line in enumerate(lines) if "epoch  1/" in line]
    assert told < first_epoch


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--epohcs", "3"], "--epochs"),
        (["--batchsize=3"], "--batch-size"),
        (["predict", "shirt.jpg", "--chekpoint", "x"], "--checkpoint"),
        (["predct", "shirt.jpg"], "predict"),
        (["trian"], "train"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(capsys, argv, hint):
    code, line = run_and_read_refusal(capsys, *argv)
    assert code == 2
    assert f"did you mean {hint}?" in line


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"]])
def test_help_shows_every_default(capsys, command):
    with pytest.raises(SystemExit) as ending:
        train_fashion.run([*command, "--help"])
    assert ending.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    options = text.partition("show this help message and exit")[2]
    assert options.count("(default: ") == len(set(re.findall(r"(?<![\w-])--[a-z-]+", options))) - 1


@pytest.mark.parametrize("argv", [["--help"], SMALL])
def test_a_reader_that_leaves_early_gets_no_traceback(argv):
    with script("train_fashion.py", *argv) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    # whoever asks for help may have it before the reader leaves
    assert process.returncode == 141 or argv == ["--help"]


# what a process does at a step, told by its number: a signal to itself, -1 being before the first
# checkpoint, or a loss that is NaN
FAULTS = f"""
import os, sys, signal, torch, train_fashion
train_fashion.N_HELD_OUT = {N_HELD_OUT}
fault, fatal_step, rank = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
one_cycle, calibrate = train_fashion.one_cycle, train_fashion.calibrate
cross_entropy = train_fashion.LOSSES["fused"]
def befall(step):
    first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if step == fatal_step and os.environ["RANK"] == rank and first_life and fault[:3] == "SIG":
        os.kill(os.getpid(), signal.Signals[fault])
def one_cycle_with_fault(step, n_steps):
    befall(step)
    return one_cycle(step, n_steps)
def calibrate_with_fault(*args):
    befall(-1)
    return calibrate(*args)
train_fashion.one_cycle, train_fashion.calibrate = one_cycle_with_fault, calibrate_with_fault
if fault == "nan" and os.environ["RANK"] == rank:
    train_fashion.LOSSES["fused"] = lambda *args: cross_entropy(*args) * float("nan")
sys.exit(train_fashion.run(sys.argv[1:]))
"""
IN_TWO = [*SMALL, "--test-size", "201", "--precision", "fp32", "--epochs", "2"]


@pytest.fixture
def torchrun(tmp_path):
    """Starts the script, which a fault befalls, in two processes that share the work."""
    pytest.importorskip("torch.distributed")
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs a PyTorch with gloo")
    file = tmp_path / "faults.py"
    file.write_text(FAULTS)
    start = "from torch.distributed.run import main; main()"
    flags = ["--standalone", "--nproc-per-node", "2", str(file)]

    def run(fault, step, rank, *argv, restarts=0):
        more = ["--max-restarts", str(restarts)]
        return script(start, *more, *flags, fault, str(step), str(rank), *IN_TWO, *argv)

    return run


def test_two_processes_train_as_one_does(torchrun, tmp_path):
    shared = tmp_path / "shared"
    process = torchrun("none", 0, 0, "--out", str(shared))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Warning" not in errors
    assert len(output.splitlines()) == 11
    alone = train_fashion.main([*IN_TWO, "--out", str(tmp_path / "alone")])
    losses = train_fashion.load_checkpoint(shared / "checkpoint.pt")["run"]["step_losses"]
    # each step multiplies what the order of summation left
    assert losses[:5] == pytest.approx(alone.step_losses[:5], abs=1e-4)
    assert losses == pytest.approx(alone.step_losses, abs=1e-2)
    # an odd number of test images, each counted once
    measures = json.loads((shared / "result.json").read_text())["measures"]
    again = train_fashion.main(["evaluate", "--checkpoint", str(shared / "checkpoint.pt")])
    assert again == pytest.approx(measures, rel=1e-4)


def test_a_run_whose_process_dies_ends_and_goes_on_to_the_same_weights(torchrun, tmp_path):
    process = torchrun("SIGKILL", 13, 1, "--out", str(tmp_path / "killed"))
    start = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert time.monotonic() - start < 120
    assert "SIGKILL" in errors
    digests = []
    for argv in (["--resume", "--out", str(tmp_path / "killed")], ["--out", str(tmp_path / "new")]):
        process = torchrun("none", 0, 0, *argv)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        digests.append(output.splitlines()[-1].split()[-3])
    assert digests[0] == digests[1]


def test_a_run_whose_process_dies_is_started_again_by_torchrun(torchrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digests = []
    # in the first epoch, and before there is a checkpoint: the folders are runs/1, runs/2, runs/3
    for fault, step in (("SIGKILL", 3), ("SIGKILL", -1), ("none", 0)):
        process = torchrun(fault, step, 1, restarts=1)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        digests.append(output.splitlines()[-1].split()[-3])
    assert digests[0] == digests[1] == digests[2]
    for number in ("1", "2", "3"):
        assert (tmp_path / "runs" / number / "result.json").exists()


def test_help_under_torchrun_is_printed_once(torchrun):
    process = torchrun("none", 0, 0, "--help")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("usage:") == 1


def test_a_signal_to_torchrun_stops_all_processes_after_a_step(torchrun, tmp_path):
    process = torchrun("none", 0, 0, "--epochs", "1000", "--out", str(tmp_path / "run"))
    while "epoch  1/1000" not in process.stdout.readline():
        pass
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert time.monotonic() - start < 10
    assert process.returncode == 1
    step = len(train_fashion.load_checkpoint(tmp_path / "run/checkpoint.pt")["run"]["step_losses"])
    assert f"after step {step} of 10000" in errors


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_not_finite_in_one_process_ends_all(torchrun, tmp_path, rank):
    process = torchrun("nan", 0, rank, "--out", str(tmp_path / "run"))
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "LossError: training needs a finite loss, got nan at step 1" in errors
    # what was saved before the first step
    state = train_fashion.load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert state["run"]["step_losses"] == []
    assert not (tmp_path / "run/checkpoint.previous.pt").exists()


def test_a_batch_that_two_processes_cannot_share_is_refused(torchrun, tmp_path):
    process = torchrun("none", 0, 0, "--batch-size", "63", "--out", str(tmp_path / "run"))
    output, errors = process.communicate()
    assert process.returncode == 1
    assert output == ""
    assert "train_fashion.py: --batch-size needs a multiple of the 2 processes, got 63" in errors
