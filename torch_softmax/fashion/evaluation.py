"""Logits of a classifier for many images, and what they are worth."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import torch_softmax
from torch_softmax import uncertainty
from torch_softmax.fashion.drawn import CLASSES
from torch_softmax.fashion.errors import LossError
from torch_softmax.fashion.processes import all_reduce, broadcast_buffers, shard

BATCH_SIZE = 500


@torch.no_grad()
def compute_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of all images, in evaluation mode; the processes divide the work."""
    model.eval()
    broadcast_buffers(model)
    logits = torch.zeros(len(images), len(CLASSES), device=images.device)
    batches = [model(batch) for batch in shard(images).split(BATCH_SIZE)]
    shard(logits).copy_(torch.cat(batches))
    # each row is zero in all processes but one, so the sum is exact
    return all_reduce(logits)


def compute_mirrored_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The mean logits of each image and its mirror image."""
    return (compute_logits(model, images) + compute_logits(model, images.flip(-1))) / 2


def compute_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of images whose largest logit is that of the true class."""
    return (logits.argmax(dim=1) == labels).float().mean().item()


def require_finite(logits: Tensor) -> None:
    """Refuse the logits of weights that overflowed in the last step."""
    if not logits.isfinite().all():
        raise LossError("training needs finite logits, got others after its last step: lower --lr")


def measure(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """Metrics of a classifier, before and after temperature scaling."""
    numbers = {"accuracy": compute_accuracy(logits, labels), "temperature": temperature}
    for when, divisor in ((" before scaling", 1.0), ("", temperature)):
        prediction = uncertainty.predict(logits / divisor)
        loss = torch_softmax.cross_entropy(logits / divisor, labels)
        score = uncertainty.brier_score(prediction.probabilities, labels)
        error = uncertainty.calibration_error(prediction.probabilities, labels)
        numbers[f"loss{when}"] = loss.item()
        numbers[f"entropy{when}"] = prediction.entropy.mean().item()
        numbers[f"Brier score{when}"] = score.item()
        numbers[f"calibration error{when}"] = error.item()
    for label in labels.unique().tolist():
        of_class = labels == label
        numbers[f"accuracy of {CLASSES[label]}"] = compute_accuracy(
            logits[of_class], labels[of_class]
        )
    return numbers


def describe_classes(classes: Tensor, probabilities: Tensor) -> str:
    """Names of classes with their probabilities."""
    return ", ".join(
        f"{CLASSES[label]} {probability:.1%}"
        for label, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
    )


def describe_examples(probabilities: Tensor, labels: Tensor) -> Iterator[str]:
    """The surest, a middling and the least sure image, each with its three likeliest classes."""
    order = probabilities.amax(dim=1).argsort(descending=True).tolist()
    chosen = {"surest": order[0], "middling": order[len(order) // 2], "least sure": order[-1]}
    for name, index in chosen.items():
        likeliest = probabilities[index].topk(3)
        guesses = describe_classes(likeliest.indices, likeliest.values)
        yield f"test image {index} ({name}): {guesses}; true class: {CLASSES[labels[index]]}"
