"""The commands evaluate and predict, and what follows a training."""

import argparse
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import torch_softmax
import torch_softmax.report
from torch_softmax import uncertainty
from torch_softmax._command_line import UserError
from torch_softmax.fashion.calibration import Calibration, calibrate
from torch_softmax.fashion.checkpoint import (
    CHECKPOINT,
    load_checkpoint,
    load_newest,
    of_this_version,
    weights_digest,
    write_file,
)
from torch_softmax.fashion.data import NOT_FASHION_MNIST, Data, load_data
from torch_softmax.fashion.devices import TRITON_DEVICES, choose_device
from torch_softmax.fashion.drawn import CLASSES
from torch_softmax.fashion.errors import DataError
from torch_softmax.fashion.evaluation import (
    compute_accuracy,
    compute_logits,
    compute_mirrored_logits,
    describe_classes,
    describe_examples,
    measure,
)
from torch_softmax.fashion.pictures import read_picture
from torch_softmax.fashion.processes import (
    broadcast_from_rank0,
    join_processes,
    rank,
    world_size,
)
from torch_softmax.fashion.run_folder import last_run, save_run
from torch_softmax.fashion.train_state import TrainState, log

SURE = 0.6  # the probability from which a prediction needs no caution

# builds the untrained classifier from the settings of a checkpoint
Build = Callable[[dict[str, Any]], nn.Module]


class Result(NamedTuple):
    """What a run measured."""

    accuracy: float
    mirrored_accuracy: float  # by the mean logits of each image and its mirror image
    epoch_accuracies: list[float]
    step_losses: list[float]
    seconds: float  # of training, with a test after each epoch
    source: str  # of the data
    digest: str  # of the final weights


class Trained(NamedTuple):
    """What a checkpoint holds for use."""

    model: nn.Module
    calibration: Calibration | None  # None before the end of the training
    settings: dict[str, Any]  # the flags that it was trained with
    origin: str


def conclude(
    state: TrainState, data: Data, folder: Path, settings: dict[str, Any], with_report: bool
) -> Result:
    """Test the trained classifier; print and write the results."""
    images, labels = data.test
    calibration = calibrate(state.model, data.held_out)
    save_run(folder, settings, state, data.source, calibration=calibration._asdict())
    logits = compute_mirrored_logits(state.model, images)
    measures = measure(logits, labels, calibration.temperature)
    measures["accuracy of the image alone"] = state.epoch_accuracies[-1]
    result = Result(
        state.epoch_accuracies[-1],
        measures["accuracy"],
        state.epoch_accuracies,
        state.step_losses,
        state.seconds,
        data.source,
        weights_digest(state.model),
    )
    log(
        f"test accuracy {result.accuracy:.2%}, and {result.mirrored_accuracy:.2%} by the mean "
        f"logits of each image and its mirror image, after {result.seconds:.1f} s of training",
        f"calibration error {measures['calibration error before scaling']:.2%}, and "
        f"{measures['calibration error']:.2%} with the logits divided by the temperature "
        f"{measures['temperature']:.3f}, fitted on {len(data.held_out.labels)} other images",
        *describe_examples(torch_softmax.softmax(logits / measures["temperature"], dim=1), labels),
        f"weights {result.digest}, in {folder / CHECKPOINT}",
        prefix=data.prefix,
    )
    content = {
        "data": result.source,
        "weights": result.digest,
        "seconds": result.seconds,
        "measures": measures,
        "settings": settings,
        "machine": describe_machine(images.device),
    }
    text = json.dumps(content, indent=2)
    broadcast_from_rank0(lambda: write_file(folder / "result.json", text.encode()))
    if rank() == 0 and with_report:
        torch_softmax.report.write_report(
            folder,
            logits,
            labels,
            CLASSES,
            images=images,
            temperature=measures["temperature"],
            history=state.history(),
            title="What the classifier says of garments",
            note=data.prefix.strip(" []"),
        )
        log(f"pictures in {folder / 'report.html'}", prefix=data.prefix)
    return result


def may_report(wanted: bool, prefix: str) -> bool:
    """Whether a report is wanted and can be drawn; if it cannot, say why before the training."""
    can_draw = importlib.util.find_spec("matplotlib") is not None
    if wanted and not can_draw:
        log(
            "no pictures without the package matplotlib: pip install matplotlib, "
            "and --resume draws them, even when the run is done",
            prefix=prefix,
        )
    return wanted and can_draw


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the seconds and the last bits depend on."""
    module = torch.get_device_module(device)
    return {
        "device": module.get_device_name(device) if device.type in TRITON_DEVICES else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


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
    if calibration is None:
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
