"""The data of a report: the caller's checked rows, and values that several parts use."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_softmax.functional.checks import (
    ArgumentTypeError,
    ArgumentValueError,
    as_number,
    check_classified_rows,
    check_tensor,
)
from torch_softmax.uncertainty import Prediction, predict

# with more classes, bars and tables show the likeliest ones only
MAX_CLASSES_IN_FULL = 12
N_LIKELIEST = 10
N_NOTABLE = 6
RIGHT, WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"


class Findings(NamedTuple):
    """Rows of logits and their predictions, on the CPU."""

    logits: Tensor  # float64, (rows, classes)
    target: Tensor  # int64, (rows,)
    class_names: tuple[str, ...]
    images: Tensor | None  # uint8, (rows, height, width, 1 or 3)
    temperature: float | None
    history: tuple[Mapping[str, float], ...]
    title: str
    note: str
    prediction: Prediction
    is_right: Tensor  # bool, (rows,)

    @property
    def accuracy(self) -> float:
        """Fraction of the rows whose likeliest class is the true one."""
        return self.is_right.double().mean().item()

    def surest_mistakes(self) -> list[int]:
        """Rows with a wrong prediction, by falling confidence."""
        order = self.prediction.confidence.argsort(descending=True, stable=True)
        return order[~self.is_right[order]].tolist()

    def least_sure(self) -> list[int]:
        """Rows by falling entropy."""
        return self.prediction.entropy.argsort(descending=True, stable=True).tolist()

    def closest_call(self) -> int:
        """The row with the smallest margin between its two likeliest classes."""
        return int(self.prediction.margin.argmin())

    def notable_rows(self) -> dict[int, str]:
        """Example rows, one for each kind of prediction, with their captions."""
        order = self.prediction.confidence.argsort(descending=True, stable=True)
        right, wrong = order[self.is_right[order]].tolist(), self.surest_mistakes()
        captions: dict[int, list[str]] = {}
        for caption, rows in (
            ("the surest answer", order[:1].tolist()),
            ("a typical answer", [int(order[len(order) // 2])]),
            ("the closest call", [self.closest_call()]),
            ("the least sure answer", self.least_sure()[:1]),
            ("the surest mistake", wrong[:1]),
            ("the least sure right answer", right[-1:]),
        ):
            for row in rows:
                captions.setdefault(row, []).append(caption)
        for row in range(len(order)):
            if len(captions) < N_NOTABLE and row not in captions:
                captions[row] = ["another answer"]
        return {row: "; ".join(names).capitalize() for row, names in captions.items()}

    def shown_classes(self, row: int) -> list[int]:
        """The classes of a row that bars and tables show: all, or the likeliest of many."""
        if len(self.class_names) <= MAX_CLASSES_IN_FULL:
            return list(range(len(self.class_names)))
        return self.logits[row].argsort(descending=True, stable=True)[:N_LIKELIEST].tolist()

    def verdict(self, row: int, true_name: str) -> str:
        """Whether the prediction is right, without relying on colour, and the true class if not."""
        return f"{RIGHT} right" if self.is_right[row] else f"{WRONG} wrong: is {true_name}"

    def predicted_name(self, row: int) -> str:
        """Name of the likeliest class of a row."""
        return self.class_names[int(self.prediction.label[row])]

    def true_name(self, row: int) -> str:
        """Name of the true class of a row."""
        return self.class_names[int(self.target[row])]


def find(
    logits: Tensor,
    target: Tensor,
    class_names: Sequence[str],
    images: Tensor | None,
    temperature: float | None,
    history: Sequence[Mapping[str, float]] | None,
    title: str,
    note: str,
) -> Findings:
    """Check the arguments of ``write_report`` and compute the findings."""
    check_classified_rows("write_report", "logits", logits, target)
    if len(logits) == 0:
        raise ArgumentValueError("write_report needs logits of at least one row, got none")
    if len(class_names) != logits.shape[1] or isinstance(class_names, str):
        raise ArgumentValueError(
            f"write_report needs class_names to hold one name for each of the {logits.shape[1]} "
            f"classes, got {len(class_names)}"
        )
    if temperature is not None:
        as_number("write_report", "temperature", temperature)
        if temperature <= 0:
            raise ArgumentValueError(f"write_report needs temperature above 0, got {temperature}")
    for epoch in history or ():
        if missing := {"epoch", "loss", "accuracy"} - epoch.keys():
            raise ArgumentValueError(
                f"write_report needs history with epoch, loss and accuracy of each epoch, "
                f"got one without {', '.join(sorted(missing))}"
            )
    # float64, because probabilities near 1 would round to 1 in float32
    logits, target = logits.detach().cpu().double(), target.cpu().long()
    prediction = predict(logits, top_k=min(3, logits.shape[1]))
    if prediction.confidence.isnan().any():
        row = int(prediction.confidence.isnan().nonzero()[0])
        raise ArgumentValueError(
            f"write_report needs logits that have a softmax, "
            f"got {logits[row].tolist()} in row {row}"
        )
    return Findings(
        logits=logits,
        target=target,
        class_names=tuple(str(name) for name in class_names),
        images=None if images is None else _as_pixels(images, len(logits)),
        temperature=temperature,
        history=tuple(history or ()),
        title=title,
        note=note,
        prediction=prediction,
        is_right=prediction.label == target,
    )


def percent(share: float) -> str:
    """A probability in percent, never 0 % or 100 % by rounding alone."""
    if 0 < share < 0.001:
        return "<0.1%"
    if share > 0.999:
        return ">99.9%"
    return f"{share:.1%}"


def class_accuracies(findings: Findings) -> Iterator[tuple[str, int, float, float, str]]:
    """For each class: name, rows, recall, precision, and the class it is mostly mistaken for."""
    counts = count_confusions(findings)
    for label, name in enumerate(findings.class_names):
        n_rows, n_named = counts[label].sum(), counts[:, label].sum()
        hits = counts[label, label].double()
        misses = counts[label].clone()
        misses[label] = 0
        mistaken = findings.class_names[int(misses.argmax())] if misses.any() else ""
        yield name, int(n_rows), (hits / n_rows).item(), (hits / n_named).item(), mistaken


def count_confusions(findings: Findings) -> Tensor:
    """The confusion matrix: numbers of rows by true class (axis 0) and predicted class."""
    n = len(findings.class_names)
    pairs = findings.target * n + findings.prediction.label
    return pairs.bincount(minlength=n * n).view(n, n)


def _as_pixels(images: Tensor, n_rows: int) -> Tensor:
    """Images as uint8 of shape (rows, height, width, 1 or 3)."""
    check_tensor("write_report", "images", images)
    channels_last = images.unsqueeze(-1) if images.dim() == 3 else images.movedim(1, -1)
    if images.dim() not in (3, 4) or len(images) != n_rows or channels_last.shape[-1] not in (1, 3):
        raise ArgumentValueError(
            f"write_report needs images of shape ({n_rows}, height, width), with 1 or 3 channels "
            f"before the height if any, got {tuple(images.shape)}"
        )
    pixels = channels_last.detach().cpu()
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise ArgumentTypeError(
            f"write_report needs images to be uint8 or floating point, got {images.dtype}"
        )
    if not (pixels.amin() >= 0 and pixels.amax() <= 1):
        raise ArgumentValueError(
            "write_report needs images of a floating-point type in [0, 1], "
            f"got {pixels.amin().item():.4g} to {pixels.amax().item():.4g}"
        )
    return (pixels.float() * 255).round().to(torch.uint8)
