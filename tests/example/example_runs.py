"""What the tests of the example share: a small training, in this process or in another."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import train_fashion

ROOT = Path(train_fashion.__file__).parent
# ten steps
SMALL = ["--dataset", "synthetic", "--train-size", "320", "--test-size", "100", "--device", "cpu"]
SMALL += ["--batch-size", "32", "--epochs", "1", "--no-report"]
DRAWN_PREFIX = "[drawn garments, not Fashion-MNIST] "
N_HELD_OUT = 100

# runs the script, whose process gets a signal while it prepares a step: FAULTS="SIGTERM@3" before
# its fourth step, "SIGKILL@-1" before its first checkpoint; a word for each restart by torchrun
RUN_WITH_FAULTS = f"""
import os, signal, sys, torch, torch_softmax, train_fashion
from torch_softmax.fashion import data

data.N_HELD_OUT = {N_HELD_OUT}
life = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
faults = os.environ["FAULTS"].split(",")[life:][:1]
is_faulty = os.environ.get("RANK", "0") == os.environ.get("FAULTY_RANK", "0")
name, _, fatal_step = faults[0].partition("@") if faults and is_faulty else ("", "", "-2")
augment, save_run, calls = train_fashion.augment, train_fashion.save_run, []

def befall(step):
    if step == int(fatal_step):
        os.kill(os.getpid(), signal.Signals[name])

def augment_with_fault(*args):
    befall(len(calls))
    calls.append(args)
    return augment(*args)

def save_with_fault(*args, **more):
    befall(-1)
    return save_run(*args, **more)

if name == "nan":
    torch_softmax.cross_entropy = lambda logits, target: logits.sum() * float("nan")
elif name:
    train_fashion.augment, train_fashion.save_run = augment_with_fault, save_with_fault
sys.exit(train_fashion.run())
"""


def script(code_or_file, *argv, stderr=subprocess.PIPE, **variables):
    """Start another process that runs a file, or code that imports the script."""
    command = ["-c", code_or_file] if "\n" in code_or_file else [code_or_file]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, *command, *argv],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        # a test run in the background of a shell inherits that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_and_read_error(capsys, *argv):
    """The exit code and the one line of a run that never started to train."""
    code = train_fashion.run(argv)
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("train_fashion.py: ") and errors.count("\n") == 1
    return code, errors


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_bit(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)
