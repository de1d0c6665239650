"""The training of the example: it learns, repeats itself, and computes what it says."""

import shutil

import pytest
import torch
from example_runs import N_HELD_OUT, SMALL, run_and_read_error, script

import train_fashion
from torch_softmax.fashion.devices import choose_precision
from torch_softmax.fashion.drawn import draw_garments
from torch_softmax.fashion.evaluation import compute_logits


def test_training_learns():
    argv = ["--train-size", "1280", "--test-size", "200", "--epochs", "8", "--batch-size", "64"]
    result = train_fashion.main([*SMALL, *argv])
    assert sum(result.step_losses[-10:]) < 0.3 * sum(result.step_losses[:10])
    assert result.accuracy > 0.6
    assert result.mirrored_accuracy > 0.6
    assert result.epoch_accuracies[-1] == result.accuracy
    assert len(result.epoch_accuracies) == 8
    assert len(result.step_losses) == 8 * 20
    assert result.source == "drawn garments, as asked"


def test_training_learns_in_bf16():
    # few images: a processor without bf16 instructions takes a second for a hundred
    result = train_fashion.main(
        [*SMALL, "--test-size", "50", "--epochs", "10", "--precision", "bf16"]
    )
    assert sum(result.step_losses[-10:]) < 0.5 * sum(result.step_losses[:10])


def test_training_repeats_itself_with_the_same_seed():
    first, second, other = (
        train_fashion.main([*SMALL, "--seed", seed]).step_losses for seed in ("5", "5", "6")
    )
    assert first == second
    assert first != other


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_training_compiled_is_the_same_and_resumes(tmp_path):
    argv = [*SMALL, "--precision", "fp32", "--epochs", "2"]
    eager = train_fashion.main(argv).step_losses
    compiled = train_fashion.main([*argv, "--compile", "--out", str(tmp_path / "whole")])
    # rounded otherwise, the steps drift apart
    assert compiled.step_losses[0] == pytest.approx(eager[0], abs=1e-5)
    assert sum(compiled.step_losses[-5:]) == pytest.approx(sum(eager[-5:]), rel=0.3)
    again = train_fashion.main([*argv, "--compile", "--resume", "--out", str(tmp_path / "whole")])
    assert again.digest == compiled.digest


def test_training_compiled_is_refused_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, line = run_and_read_error(capsys, *SMALL, "--device", "cpu", "--compile")
    assert code == 2
    assert "--compile needs a C++ compiler" in line


@pytest.mark.parametrize("seed", ["0", "2"])
def test_training_is_the_same_with_both_losses_in_float32(seed):
    argv = [*SMALL, "--precision", "fp32", "--seed", seed]
    ours = torch.tensor(train_fashion.main([*argv, "--loss", "fused"]).step_losses)
    torchs = torch.tensor(train_fashion.main([*argv, "--loss", "torch"]).step_losses)
    torch.testing.assert_close(ours[0], torchs[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours, torchs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("loss", "function"),
    [
        ("fused", "torch_softmax.cross_entropy"),
        ("triton", "torch_softmax.cross_entropy"),
        ("torch", "F.cross_entropy"),
    ],
)
def test_training_calls_the_loss_that_was_asked_for(monkeypatch, loss, function):
    def recognizable(logits, labels):
        raise ZeroDivisionError(function)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(f"train_fashion.{function}", recognizable)
    with pytest.raises(ZeroDivisionError, match=function):
        train_fashion.main([*SMALL, "--loss", loss])


def test_training_with_loss_triton_runs_the_interpreted_kernels():
    code = (
        "import sys, train_fashion\n"
        "from torch_softmax.fashion import data\n"
        f"data.N_HELD_OUT = {N_HELD_OUT}\n"
        "result = train_fashion.main(sys.argv[1:])\n"
        "assert 'torch_softmax._kernels' in sys.modules and len(result.step_losses) == 10\n"
    )
    process = script(code, *SMALL, "--loss", "triton", TRITON_INTERPRET="1")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "loss triton" in output


def test_training_with_loss_triton_is_refused_without_the_kernels(capsys):
    code, line = run_and_read_error(capsys, *SMALL, "--loss", "triton")
    assert code == 2
    assert "TRITON_INTERPRET=1" in line


# in an epoch of 10 steps the loss shows the overflow, in one of a single step the test logits
@pytest.mark.parametrize("train_size", ["320", "32"])
def test_training_stops_at_a_loss_that_is_not_finite(capsys, train_size):
    flags = ["--lr", "1e30", "--precision", "fp32", "--train-size", train_size]
    code = train_fashion.run([*SMALL, *flags])
    errors = capsys.readouterr().err
    assert code == 4
    assert errors.count("\n") == 1 and "finite" in errors


def test_training_of_the_best_recipe_is_evaluated_with_its_larger_net(capsys):
    argv = ["--recipe", "best", "--train-size", "64"]
    result = train_fashion.main([*SMALL, *argv])
    assert len(result.step_losses) == 2
    assert train_fashion.main(["evaluate"])["accuracy"] == result.mirrored_accuracy
    assert train_fashion.run([*SMALL, "--train-size", "64", "--resume"]) == 2
    assert "--recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capabilities", "use_bf16"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_bf16": False}, False)],
)
def test_precision_depends_on_the_processor(monkeypatch, capabilities, use_bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", torch.device("cpu"))[0] is use_bf16


def test_logits_are_float32_in_every_precision():
    images, _ = draw_garments(20, seed=0)
    for use_bf16 in (True, False):
        model = train_fashion.Classifier(16, use_bf16=use_bf16)
        assert compute_logits(model, images).dtype == torch.float32


def test_augmentation_mirrors_half_of_the_images():
    images, _ = draw_garments(1000, seed=0)
    flipped = train_fashion.flip_half(images)
    is_mirrored = (flipped == images.flip(-1)).flatten(1).all(dim=1)
    is_same = (flipped == images).flatten(1).all(dim=1)
    assert (is_mirrored | is_same).all()
    assert 400 < is_mirrored.sum() < 600


def test_augmentation_erases_a_rectangle_of_half_of_the_images():
    images = torch.full((1000, 1, 28, 28), 7, dtype=torch.uint8)
    erased = train_fashion.erase_half(images) == 0
    assert 350 < erased.flatten(1).any(dim=1).sum() < 550
    assert erased.flatten(1).float().mean(dim=1).max() <= 0.3
    # as many pixels as the rows and the columns that have any span
    heights, widths = erased.any(dim=3).sum(dim=2), erased.any(dim=2).sum(dim=2)
    assert torch.equal(erased.flatten(1).sum(dim=1), (heights * widths).squeeze(1))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 10, 100, 2808])
def test_learning_rate_rises_and_falls_to_zero(n_steps):
    model = train_fashion.Classifier(16, use_bf16=False)
    state = train_fashion.make_state(model, 0.01, n_steps)
    rates = []
    for _ in range(n_steps):
        rates.append(state.scheduler.get_last_lr()[0])
        state.optimizer.step()
        state.scheduler.step()
    rates = torch.tensor(rates)
    peak = int(rates.argmax())
    assert (rates[: peak + 1].diff() >= 0).all() and (rates[peak:].diff() <= 0).all()
    assert n_steps < 100 or (0 < rates[0] <= 0.001 and rates.max() > 0.0099)
    assert n_steps < 4 or rates[-1] < 0.0001
