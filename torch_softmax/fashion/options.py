"""The flags of ``train_fashion.py``: train (the default), evaluate and predict."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch_softmax._command_line import (
    OneLineParser,
    UserError,
    did_you_mean,
    positive_number,
    whole_number,
)
from torch_softmax.fashion.data import N_TEST, N_TRAIN

COMMANDS = ("train", "evaluate", "predict")
# the flags that the results depend on
RESULT_FLAGS = (
    "dataset",
    "train_size",
    "test_size",
    "loss",
    "recipe",
    "epochs",
    "batch_size",
    "lr",
    "seed",
    "precision",
    "compile",
)


class Recipe(Protocol):
    """What the flags need of a recipe: its defaults."""

    @property
    def epochs(self) -> int: ...

    @property
    def peak_lr(self) -> float: ...


class Parser(OneLineParser):
    """Prints its help in the first process only."""

    def print_help(self, file: Any = None) -> None:
        if os.environ.get("RANK", "0") == "0":
            super().print_help(file)


def parse(
    argv: Sequence[str], recipes: Mapping[str, Recipe], losses: Sequence[str]
) -> argparse.Namespace:
    """The flags, checked as far as possible without a device and data."""
    if not argv or argv[0].startswith("-"):
        argv = ["train", *argv]
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS) or f": needs one of {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {argv[0]}{hint}")
    parser = Parser(prog="train_fashion.py")
    commands = parser.add_subparsers(dest="command")
    epilog = f"Commands: {', '.join(COMMANDS)} (the first is the default); each has --help."
    train = commands.add_parser(
        "train", description="Train a small convolutional net on Fashion-MNIST.", epilog=epilog
    )
    add_data_flags(train)
    add_training_flags(train, recipes, losses)
    add_machine_flags(train)
    add_file_flags(train)
    evaluate = commands.add_parser(
        "evaluate", description="Measure a checkpoint on the test images.", epilog=epilog
    )
    add_checkpoint_flags(evaluate)
    predict = commands.add_parser(
        "predict", description="Name the garments in pictures, with probabilities.", epilog=epilog
    )
    predict.add_argument("files", nargs="+", metavar="FILE", help="any picture Pillow can read")
    add_checkpoint_flags(predict)
    options = parser.parse_args(argv)
    if options.command == "train":
        complete_training_flags(options, recipes)
    return options


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which images to use."""
    add = parser.add_argument_group("data").add_argument
    datasets = ("auto", "fashion-mnist", "synthetic")
    add("--dataset", help="synthetic: drawn garments", choices=datasets, default="auto")
    add_data_dir(add)
    sizes = (("--train-size", "training", N_TRAIN), ("--test-size", "test", N_TEST))
    for flag, kind, most in sizes:
        add(flag, help=f"{kind} images to use", type=whole_number(1, most), default=most)


def add_training_flags(
    parser: argparse.ArgumentParser, recipes: Mapping[str, Recipe], losses: Sequence[str]
) -> None:
    """How to train; what is left out is the recipe's."""
    add = parser.add_argument_group("training").add_argument
    default = next(iter(recipes))
    add("--loss", help="triton: fused, only in Triton kernels", choices=losses, default=losses[0])
    about = "long: more epochs, with parts of images blackened; best: also a larger net, for a GPU"
    add("--recipe", help=about, choices=[*recipes], default=default)
    each = ", ".join(f"{name} {recipe.epochs}" for name, recipe in recipes.items())
    epochs = f"passes over the training images (default: {each})"
    add("--epochs", help=epochs, type=whole_number(1, 10**6))
    add("--batch-size", help="images per step", type=whole_number(1, N_TRAIN), default=128)
    each = ", ".join(f"{name} {recipe.peak_lr:g}" for name, recipe in recipes.items())
    add("--lr", help=f"peak of the learning rate (default: {each})", type=positive_number)
    add("--seed", help="of all randomness", type=whole_number(0, 2**63 - 1), default=0)


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Where and how to compute."""
    add = parser.add_argument_group("machine").add_argument
    add_device(add)
    choices = ("auto", "fp32", "bf16")
    add("--precision", help="of the network", choices=choices, default="auto")
    add("--compile", help="train the network with torch.compile", action="store_true")


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """What to write, and when."""
    add = parser.add_argument_group("files").add_argument
    out = "folder of the run (default: the next of runs/1, runs/2, ...)"
    add("--out", help=out, type=Path)
    resume = "continue from the checkpoint in --out or of the last run"
    add("--resume", help=resume, action="store_true")
    steps = "also save after every so many steps; 0: only after each epoch"
    add("--save-every", help=steps, type=whole_number(0, 10**9), default=0)
    add("--no-report", help="leave out report.html and its pictures", action="store_true")


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """What evaluate and predict share."""
    add = parser.add_argument_group("machine and files").add_argument
    checkpoint = "file, or folder of a run (default: the last of runs/1, runs/2, ...)"
    add("--checkpoint", help=checkpoint, type=Path)
    add_device(add)
    add_data_dir(add)


def add_device(add: Any) -> None:
    """Add --device."""
    add("--device", help="cpu, cuda, cuda:1, ...", default="auto")


def add_data_dir(add: Any) -> None:
    """Add --data-dir."""
    folder = "folder of the four IDX files, plain or as .gz (default: found)"
    add("--data-dir", help=folder, type=Path)


def complete_training_flags(options: argparse.Namespace, recipes: Mapping[str, Recipe]) -> None:
    """Take what is left to the recipe, and refuse flags that contradict each other."""
    options.epochs = options.epochs or recipes[options.recipe].epochs
    options.lr = options.lr or recipes[options.recipe].peak_lr
    if options.batch_size > options.train_size:
        raise UserError(
            f"argument --batch-size: needs at most the {options.train_size} images of "
            f"--train-size, got {options.batch_size}"
        )
    if options.dataset == "synthetic" and options.data_dir:
        raise UserError(
            "argument --data-dir: needs a --dataset other than synthetic, got synthetic"
        )


def result_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that the results depend on, with their values."""
    return {f"--{name.replace('_', '-')}": getattr(options, name) for name in RESULT_FLAGS}
