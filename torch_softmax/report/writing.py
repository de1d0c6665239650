"""Write the report: draw all plots first, then replace each file in one step."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from torch_softmax._atomic_file import write_atomically
from torch_softmax.report.findings import Findings, find
from torch_softmax.report.page import render_page


def write_report(
    folder: str | os.PathLike[str],
    logits: Tensor,
    target: Tensor,
    class_names: Sequence[str],
    *,
    images: Tensor | None = None,
    temperature: float | None = None,
    history: Sequence[Mapping[str, float]] | None = None,
    title: str = "What the classifier says",
    note: str = "",
) -> list[Path]:
    """Write plots and an HTML page about the predictions and the calibration of a classifier.

    ``report.html`` contains the plots and needs no other file and no network. It explains logits,
    probabilities, confidence, entropy and calibration with the given rows, and has a slider for the
    temperature. The files of an earlier report are replaced, each in one step.

    Args:
        folder: Output folder; created if it does not exist.
        logits: Shape ``(rows, classes)``, of rows that the classifier was not trained on.
        target: True class of each row, any integer type.
        class_names: A name for each class.
        images: Input images of the classifier, shape ``(rows, height, width)``, or with 1 or 3
            channels before the height; uint8, or floating point in [0, 1]. None leaves out the
            plots that show images.
        temperature: From :class:`torch_softmax.uncertainty.TemperatureScaling`; the reliability
            diagram also shows the logits divided by it.
        history: For each epoch of the training a mapping with ``"epoch"``, ``"loss"`` and
            ``"accuracy"``, for the learning curve.
        title: Heading of the page.
        note: A remark on the data, such as "drawn garments, not Fashion-MNIST", shown in every plot
            and on the page.

    Returns:
        The files written: ``report.html``, and PNG plots named ``confusion``, ``probabilities`` and
        ``reliability``; with ``images`` also ``examples`` and ``uncertain``, with ``history`` also
        ``learning_curve``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes disagree, or an argument is out of range.
        IndexError: A target is not a class.
    """
    findings = find(logits, target, class_names, images, temperature, history, title, note)
    contents = draw_pictures(findings)
    contents["report.html"] = render_page(findings, contents).encode()
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in contents.items():
        path = Path(folder, name)
        write_atomically(path, content)
        paths.append(path)
    return paths


def draw_pictures(findings: Findings) -> dict[str, bytes]:
    """The plots as PNG content, by file name."""
    try:
        from torch_softmax.report import canvas, charts, pictures
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "write_report needs matplotlib (pip install matplotlib), "
            f"got an environment without {error.name}",
            name=error.name,
        ) from error
    drawings = {
        "probabilities.png": pictures.probabilities,
        "confusion.png": charts.confusion,
        "reliability.png": charts.reliability_diagram,
    }
    if findings.images is not None:
        drawings |= {"examples.png": pictures.examples, "uncertain.png": pictures.uncertain}
    if findings.history:
        drawings["learning_curve.png"] = charts.learning_curve
    with canvas.style():
        return {name: canvas.as_png(draw(findings)) for name, draw in drawings.items()}
