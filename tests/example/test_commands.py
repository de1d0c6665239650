"""The command line of the example: flags, output, files, evaluate, predict."""

import contextlib
import csv
import json
import math
import os
import pty
import re
import sys
import termios

import pytest
import torch
from example_runs import DRAWN_PREFIX, SMALL, run_and_read_error, script

import torch_softmax.report
import train_fashion
from torch_softmax.fashion import evaluation
from torch_softmax.fashion.drawn import CLASSES


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
        (["--batch-size", "321"], "--batch-size"),
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
def test_wrong_value_is_refused_before_training(capsys, argv, named):
    code, line = run_and_read_error(capsys, *SMALL, *argv)
    assert code == 2
    assert named in line


def test_wrong_value_gives_the_exit_code_of_the_script():
    process = script(train_fashion.__file__, *SMALL, "--epochs", "0")
    output, errors = process.communicate()
    assert process.returncode == 2
    assert output == ""
    assert errors.count("\n") == 1 and "--epochs" in errors


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
def test_mistyped_word_is_answered_with_the_nearest(capsys, argv, hint):
    code, line = run_and_read_error(capsys, *argv)
    assert code == 2
    assert f"did you mean {hint}?" in line


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"]])
def test_help_shows_every_default(capsys, command):
    with pytest.raises(SystemExit) as ending:
        train_fashion.run([*command, "--help"])
    assert ending.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    options = text.partition("show this help message and exit")[2]
    flags = set(re.findall(r"(?<![\w-])--[a-z-]+(?= |,|$)", options)) - {"--help"}
    assert "--device" in flags
    # the help of some flags names others
    assert options.count("(default: ") >= len(flags)


@pytest.mark.parametrize("argv", [["--help"], SMALL])
def test_output_without_a_reader_ends_without_a_traceback(argv):
    with script(train_fashion.__file__, *argv) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    # help may be complete before the reader leaves
    assert process.returncode == 141 or argv == ["--help"]


def test_output_about_drawn_garments_says_so_in_every_line(capsys):
    train_fashion.main(SMALL)
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert len(lines) == 10
    assert all(line.startswith(DRAWN_PREFIX) for line in lines)
    assert errors == ""


def test_output_about_fashion_mnist_does_not_mention_drawings(capsys, small_files):
    files = ["--dataset", "auto", "--data-dir", str(small_files)]
    result = train_fashion.main([*SMALL, *files])
    output = capsys.readouterr().out
    assert result.source == f"Fashion-MNIST from {small_files}"
    assert str(small_files) in output
    assert "drawn" not in output


def test_output_names_the_likeliest_and_the_true_class():
    probabilities = torch.eye(10)[[3, 9, 0]] * torch.tensor([[0.8], [0.5], [0.2]]) + 0.02
    lines = list(evaluation.describe_examples(probabilities, torch.tensor([3, 8, 0])))
    assert lines[0].startswith("test image 0 (surest): Dress 82.0%, ")
    assert lines[1].startswith("test image 1 (middling): Ankle boot 52.0%, ")
    assert lines[1].endswith("true class: Bag")
    assert lines[2].startswith("test image 2 (least sure): T-shirt/top 22.0%, ")


@pytest.mark.parametrize("columns", [80, 120])
def test_progress_bar_is_shown_on_a_terminal(capsys, monkeypatch, columns):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    with os.fdopen(terminal, "w") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        train_fashion.main([*SMALL, "--epochs", "2"])
    shown = b""
    # Linux reports the end of a terminal as an error
    with contextlib.suppress(OSError), os.fdopen(controller, "rb", buffering=0) as output:
        while part := output.read(4096):
            shown += part
    lines = [line for line in shown.decode().split("\r") if "test" in line]
    assert lines
    for line in lines:
        assert re.match(r"\[drawn\] epoch [12]/2: .*images/s, \S+ left, loss \S+, test \S+%", line)
        assert len(line) <= columns


def test_progress_bar_is_not_shown_in_a_pipe(capfd):
    train_fashion.main(SMALL)
    assert "\r" not in "".join(capfd.readouterr())


def test_run_leaves_its_numbers_for_programs(finished_run):
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


def test_report_ends_a_run(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    argv = [flag for flag in SMALL if flag != "--no-report"]
    train_fashion.main([*argv, "--out", str(tmp_path / "run")])
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out
    assert "not Fashion-MNIST" in (tmp_path / "run" / "report.html").read_text()


def test_report_without_matplotlib_says_what_to_install(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch_softmax.report.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(torch_softmax.report, name.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train_fashion.main([flag for flag in SMALL if flag != "--no-report"])
    lines = capsys.readouterr().out.splitlines()
    (told,) = [number for number, line in enumerate(lines) if "pip install matplotlib" in line]
    (first_epoch,) = [number for number, line in enumerate(lines) if "epoch  1/" in line]
    assert told < first_epoch


def test_evaluate_measures_what_the_training_did(capsys, finished_run):
    checkpoint = ["--checkpoint", str(finished_run[0] / "checkpoint.pt"), "--device", "cpu"]
    measures = train_fashion.main(["evaluate", *checkpoint])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(DRAWN_PREFIX) for line in lines)
    assert f"{DRAWN_PREFIX}device cpu, as asked" in lines
    assert measures["accuracy"] == finished_run[1].mirrored_accuracy
    assert 0 < measures["Brier score"] < 1 and 0 < measures["calibration error"] < 1
    of_classes = [measures[f"accuracy of {name}"] for name in CLASSES]
    assert sum(of_classes) / 10 == pytest.approx(measures["accuracy"])
    assert measures == json.loads((finished_run[0] / "result.json").read_text())["measures"]


def test_evaluate_metrics_of_known_logits():
    # three of four right
    probabilities = torch.tensor(
        [[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]
    )
    labels = torch.tensor([0, 0, 1, 1])
    # divided by the temperature 2, these logits give the probabilities
    measures = evaluation.measure(2 * probabilities.log(), labels, 2.0)
    assert measures["accuracy"] == 0.75 and measures["temperature"] == 2
    assert measures["loss"] == pytest.approx(-math.log(0.8 * 0.5 * 0.8 * 0.2) / 4)
    assert measures["Brier score"] == pytest.approx((0.06 + 0.42 + 0.06 + 1.14) / 4)
    assert measures["entropy"] == pytest.approx(
        -(probabilities * probabilities.log()).sum().item() / 4
    )
    assert measures["accuracy of T-shirt/top"] == 1 and measures["accuracy of Trouser"] == 0.5


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "shirt.png"]])
def test_checkpoint_of_drawn_garments_refuses_data(capsys, run_folder, command):
    pytest.importorskip("PIL.Image").new("L", (50, 50), 200).save("shirt.png")
    argv = [*command, "--checkpoint", str(run_folder), "--data-dir", "."]
    code, line = run_and_read_error(capsys, *argv)
    assert code == 2
    assert "--data-dir" in line


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_predict_refuses_a_file_that_is_no_picture(capsys, finished_run, tmp_path, content):
    pytest.importorskip("PIL")
    (tmp_path / "file.png").write_bytes(content)
    code, line = run_and_read_error(
        capsys, "predict", str(tmp_path / "file.png"), "--checkpoint", str(finished_run[0])
    )
    assert code == 3
    assert str(tmp_path / "file.png") in line


def test_predict_without_pillow_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, line = run_and_read_error(capsys, "predict", "shirt.jpg")
    assert code == 2
    assert "pip install pillow" in line
