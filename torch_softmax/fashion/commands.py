"""The commands evaluate and predict."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from torch_softmax import uncertainty
from torch_softmax._command_line import UserError
from torch_softmax.fashion.calibration import Calibration, calibrate
from torch_softmax.fashion.checkpoint import (
    load_checkpoint,
    load_newest,
    of_this_version,
)
from torch_softmax.fashion.data import NOT_FASHION_MNIST, Data, load_data
from torch_softmax.fashion.devices import choose_device
from torch_softmax.fashion.drawn import CLASSES
from torch_softmax.fashion.errors import DataError
from torch_softmax.fashion.evaluation import (
    compute_accuracy,
    compute_logits,
    compute_mirrored_logits,
    describe_classes,
    measure,
)
from torch_softmax.fashion.pictures import read_picture
from torch_softmax.fashion.processes import (
    broadcast_from_rank0,
    join_processes,
)
from torch_softmax.fashion.run_folder import last_run
from torch_softmax.fashion.train_state import log

SURE = 0.6  # the probability from which a prediction needs no caution

# builds the untrained classifier from the settings of a checkpoint
Build = Callable[[dict[str, Any]], nn.Module]


class Trained(NamedTuple):
    """What a checkpoint holds for use."""

    model: nn.Module
    calibration: Calibration | None  # None before the end of the training
    settings: dict[str, Any]  # the flags that it was trained with
    origin: str


def evaluate(options: argparse.Namespace, build: Build) -> dict[str, float]:
    """Measure a checkpoint on its test images."""
    device, why_device = choose_device(options.device)
    join_processes(device)
    trained = load_model(options.checkpoint, device, build)
    data = load_data_of(trained.settings, options.data_dir).to(device)
    calibration = trained.calibration or calibrate(trained.model, data.held_out)
    logits = compute_mirrored_logits(trained.model, data.test.images)
    measures = measure(logits, data.test.labels, calibration.temperature)
    alone = compute_logits(trained.model, data.test.images)
    measures["accuracy of the image alone"] = compute_accuracy(alone, data.test.labels)
    log(
        f"{data.source}: {len(data.test.labels)} to test, each with its mirror image",
        f"device {device}, {why_device}",
        f"model of {trained.origin}",
        *(f"{name}: {value:.4f}" for name, value in measures.items()),
        prefix=data.prefix,
    )
    return measures


def predict(options: argparse.Namespace, build: Build) -> uncertainty.Prediction:
    """Name the garments in pictures."""
    device, _ = choose_device(options.device)
    join_processes(device)
    pictures, failures = [], []
    for path in options.files:
        try:
            pictures.append((path, *read_picture(path)))
        except DataError as error:
            failures.append(str(error))
    if not pictures:
        raise DataError("; ".join(failures))
    images = torch.stack([image for _, image, _ in pictures]).to(device)
    trained = load_model(options.checkpoint, device, build)
    calibration = trained.calibration
    if calibration is None or options.data_dir:
        data = load_data_of(trained.settings, options.data_dir)
        calibration = calibrate(trained.model, data.held_out.to(device))
    logits = compute_mirrored_logits(trained.model, images)
    prediction = uncertainty.predict(logits / calibration.temperature)
    is_unusual = calibration.is_unusual(trained.model, images)
    lines = [f"model of {trained.origin}"]
    for index, (path, _, is_plain) in enumerate(pictures):
        caution = "not sure: " if prediction.confidence[index] < SURE else ""
        if is_unusual[index] or not is_plain:
            what = "unlike the training data" if is_unusual[index] else "no plain background"
            caution = f"{what}, so these numbers mean little: "
        guesses = describe_classes(
            prediction.top_classes[index], prediction.top_probabilities[index]
        )
        lines.append(
            f"{path}: {caution}{guesses}; entropy {prediction.entropy[index]:.2f} "
            f"of {math.log(len(CLASSES)):.2f} nats"
        )
    is_drawn = trained.settings["--dataset"] == "synthetic"
    log(*lines, prefix=NOT_FASHION_MNIST if is_drawn else "")
    if failures:
        raise DataError("; ".join(failures))
    return prediction


def load_model(path: Path | None, device: torch.device, build: Build) -> Trained:
    """The model of a checkpoint, or of the newest one in a folder."""
    path = path or last_run()
    is_folder = path.is_dir() or not path.suffix
    load = load_newest if is_folder else load_checkpoint
    content = broadcast_from_rank0(lambda: load(path))
    with of_this_version(path):
        settings = content["settings"]
        model = build(settings)
        model.load_state_dict(content["run"]["model"])
        saved = content.get("calibration")
        calibration = None if saved is None else Calibration(**saved)
        origin = f"{path}, trained for {len(content['run']['step_losses'])} steps"
    return Trained(model.to(device), calibration, settings, origin)


def load_data_of(settings: dict[str, Any], data_dir: Path | None) -> Data:
    """The data that a checkpoint was trained with."""
    if data_dir and settings["--dataset"] == "synthetic":
        raise UserError("--data-dir needs a checkpoint of Fashion-MNIST, got one of drawn garments")
    return load_data(
        settings["--dataset"], data_dir, settings["--train-size"], settings["--test-size"]
    )
