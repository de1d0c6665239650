"""Plots of all rows together: confusion matrix, reliability diagram, learning curve."""

import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from torch_softmax.functional import softmax
from torch_softmax.report.canvas import BLUE, GREY, ORANGE, VERMILLION, new_figure, short
from torch_softmax.report.findings import Findings, count_confusions, percent
from torch_softmax.uncertainty import calibration_error, reliability

# with more classes, the counts or the names would not be legible
MAX_CLASSES_WITH_COUNTS, MAX_CLASSES_WITH_NAMES = 20, 60
N_BINS = 15


def confusion(findings: Findings) -> Figure:
    """The confusion matrix."""
    counts = count_confusions(findings)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    n = len(counts)
    side = min(max(2.5 + 0.6 * n, 5), 14)
    figure = new_figure(findings, "Confusion matrix", side + 1, side)
    axes = figure.subplots()
    # square-root scale: on a linear one, a few percent of mistakes would be invisible
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    colorbar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1))
    colorbar.set_label("share of the rows of the true class")
    colorbar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    axes.set(xlabel="likeliest class", ylabel="true class")
    if n <= MAX_CLASSES_WITH_NAMES:
        names = [short(name) for name in findings.class_names]
        axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), names)
    if n <= MAX_CLASSES_WITH_COUNTS:
        for row, column in counts.nonzero().tolist():
            dark = shares[row, column] > 0.3
            count = f"{int(counts[row, column]):,}"
            axes.text(column, row, count, ha="center", va="center", color="w" if dark else "k")
    return figure


def reliability_diagram(findings: Findings) -> Figure:
    """Accuracy by confidence, before and after temperature scaling."""
    panels = [("as the model says", 1.0)]
    if findings.temperature is not None:
        panels.append((f"at temperature {findings.temperature:.3g}", findings.temperature))
    heading = "Reliability: is the model right as often as it says?"
    figure = new_figure(findings, heading, max(4.5 * len(panels), 6), 5.8)
    grid = figure.subplots(
        2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1]
    )
    for (name, temperature), diagram, histogram in zip(panels, grid[0], grid[1], strict=True):
        _show_reliability(findings, name, temperature, diagram, histogram)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("rows")
    # below the axes, because the bars of a few rows may fill them
    entries = grid[0, 0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=len(entries[0]), frameon=False)
    return figure


def learning_curve(findings: Findings) -> Figure:
    """Loss and accuracy of each epoch."""
    figure = new_figure(findings, "Learning curve", 7, 5)
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [epoch["epoch"] for epoch in findings.history]
    for axes, name, color, marker in (
        (above, "accuracy", BLUE, "o"),
        (below, "loss", VERMILLION, "s"),
    ):
        values = [epoch[name] for epoch in findings.history]
        axes.plot(epochs, values, color=color, marker=marker, markersize=4)
        axes.set_ylabel(name)
        axes.grid(axis="y", color=GREY, alpha=0.4)
        last = f"{values[-1]:.2%}" if name == "accuracy" else f"{values[-1]:.4f}"
        text = axes.annotate(
            last, (epochs[-1], values[-1]), (0, 8), textcoords="offset points", ha="right"
        )
        # a white box hides the grid lines behind the text
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        axes.margins(y=0.2)
    above.yaxis.set_major_formatter(PercentFormatter(1))
    below.set_xlabel("epoch")
    # explicit limits: around a single epoch the ticks would be fractions
    below.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _show_reliability(
    findings: Findings, name: str, temperature: float, diagram: Axes, histogram: Axes
) -> None:
    shares = softmax(findings.logits / temperature, 1)
    bins = reliability(shares, findings.target, N_BINS)
    error = calibration_error(shares, findings.target, N_BINS).item()
    some = bins.n_rows > 0
    centers = ((torch.arange(N_BINS) + 0.5) / N_BINS)[some].tolist()
    confidence = bins.confidence[some].tolist()
    accuracy, n_rows = bins.accuracy[some].tolist(), bins.n_rows[some].tolist()
    width = 0.94 / N_BINS
    diagram.bar(centers, accuracy, width, color=BLUE, label="accuracy")
    diagram.bar(
        centers,
        [said - true for said, true in zip(confidence, accuracy, strict=True)],
        width,
        bottom=accuracy,
        color="none",
        edgecolor=ORANGE,
        hatch="///",
        label="gap to the confidence",
    )
    diagram.plot([0, 1], [0, 1], "k--", linewidth=1, label="calibrated")
    diagram.set(xlim=(0, 1), ylim=(0, 1), aspect="auto")
    diagram.set_title(f"{name}\ncalibration error {percent(error)}")
    histogram.bar(centers, n_rows, width, color=GREY)
    histogram.set(xlabel="confidence", yscale="log")
    # below 1, so that a bin of one row has a visible bar
    histogram.set_ylim(bottom=0.5)
    histogram.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in (diagram, histogram):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    diagram.yaxis.set_major_formatter(PercentFormatter(1))
