"""What follows a training: its test, result.json and the report."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import torch_softmax
import torch_softmax.report
from torch_softmax.fashion.calibration import calibrate
from torch_softmax.fashion.checkpoint import (
    CHECKPOINT,
    weights_digest,
    write_file,
)
from torch_softmax.fashion.data import Data
from torch_softmax.fashion.devices import TRITON_DEVICES
from torch_softmax.fashion.drawn import CLASSES
from torch_softmax.fashion.evaluation import (
    compute_mirrored_logits,
    describe_examples,
    measure,
)
from torch_softmax.fashion.processes import (
    broadcast_from_rank0,
    rank,
    world_size,
)
from torch_softmax.fashion.run_folder import save_run
from torch_softmax.fashion.train_state import TrainState, log


class Result(NamedTuple):
    """What a run measured."""

    accuracy: float
    mirrored_accuracy: float  # by the mean logits of each image and its mirror image
    epoch_accuracies: list[float]
    step_losses: list[float]
    seconds: float  # of training, with a test after each epoch
    source: str  # of the data
    digest: str  # of the final weights


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
        accuracy=state.epoch_accuracies[-1],
        mirrored_accuracy=measures["accuracy"],
        epoch_accuracies=state.epoch_accuracies,
        step_losses=state.step_losses,
        seconds=state.seconds,
        source=data.source,
        digest=weights_digest(state.model),
    )
    probabilities = torch_softmax.softmax(logits / calibration.temperature, dim=1)
    log(
        f"test accuracy {result.accuracy:.2%}, and {result.mirrored_accuracy:.2%} by the mean "
        f"logits of each image and its mirror image, after {result.seconds:.1f} s of training",
        f"calibration error {measures['calibration error before scaling']:.2%}, and "
        f"{measures['calibration error']:.2%} with the logits divided by the temperature "
        f"{calibration.temperature:.3f}, fitted on {len(data.held_out.labels)} other images",
        *describe_examples(probabilities, labels),
        f"weights {result.digest}, in {folder / CHECKPOINT}",
        prefix=data.prefix,
    )
    content = describe_result(result, measures, settings, images.device)
    broadcast_from_rank0(lambda: write_file(folder / "result.json", content))
    if rank() == 0 and with_report:
        write_report(folder, logits, data, calibration.temperature, state)
    return result


def describe_result(
    result: Result, measures: dict[str, float], settings: dict[str, Any], device: torch.device
) -> bytes:
    """The results as JSON, with what the seconds and the last bits depend on."""
    module = torch.get_device_module(device)
    content = {
        "data": result.source,
        "weights": result.digest,
        "seconds": result.seconds,
        "measures": measures,
        "settings": settings,
        "machine": {
            "device": module.get_device_name(device) if device.type in TRITON_DEVICES else "cpu",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": world_size(),
        },
    }
    return json.dumps(content, indent=2).encode()


def write_report(
    folder: Path, logits: Tensor, data: Data, temperature: float, state: TrainState
) -> None:
    """Write report.html and its pictures."""
    torch_softmax.report.write_report(
        folder,
        logits,
        data.test.labels,
        CLASSES,
        images=data.test.images,
        temperature=temperature,
        history=state.history(),
        title="What the classifier says of garments",
        note=data.prefix.strip(" []"),
    )
    log(f"pictures in {folder / 'report.html'}", prefix=data.prefix)


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
