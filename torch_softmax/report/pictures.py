"""Plots of single rows: image, prediction, confidence and true class."""

from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from torch_softmax.report.canvas import BLUE, GREY, VERMILLION, frame, new_figure, short, show_image
from torch_softmax.report.findings import RIGHT, WRONG, Findings, percent

COLUMNS = 6
N_EXAMPLES = 4 * COLUMNS
N_UNCERTAIN = 25
TRUE_CLASS: dict[str, Any] = {"facecolor": "white", "edgecolor": VERMILLION, "hatch": "////"}


def examples(findings: Findings) -> Figure:
    """The first rows and, below them, the mistakes of highest confidence."""
    first = list(range(min(N_EXAMPLES, len(findings.target))))
    mistakes = findings.surest_mistakes()[:COLUMNS]
    groups = [("The first rows as they come", first)]
    if mistakes:
        groups.append(("The surest mistakes of all rows", mistakes))
    heights = [-(-len(rows) // COLUMNS) for _, rows in groups]
    # a heading takes a fifth of a row
    ratios = [height + 0.2 for height in heights]
    figure = new_figure(findings, "What the model sees", 8.5, 0.6 + 1.95 * sum(ratios))
    parts = figure.subfigures(len(groups), 1, height_ratios=ratios, squeeze=False).flat
    for part, (heading, rows), height in zip(parts, groups, heights, strict=True):
        part.suptitle(heading, fontsize=11)
        grid = part.subplots(height, COLUMNS, squeeze=False).flat
        _show_rows(findings, rows, grid, _guess)
    return figure


def uncertain(findings: Findings) -> Figure:
    """The rows of highest entropy, each with its two likeliest classes."""
    rows = findings.least_sure()[:N_UNCERTAIN]
    height = -(-len(rows) // 5)
    heading = f"The {len(rows)} least certain rows, by entropy"
    figure = new_figure(findings, heading, 8.5, 0.7 + 2.35 * height)
    grid = figure.subplots(height, 5, squeeze=False).flat
    _show_rows(findings, rows, grid, _doubt)
    return figure


def probabilities(findings: Findings) -> Figure:
    """The probabilities of a few notable rows."""
    notable = findings.notable_rows()
    height = -(-len(notable) // 2)
    figure = new_figure(findings, "Softmax: probabilities that sum to 1", 9.5, 0.9 + 2.9 * height)
    parts = figure.subfigures(height, 2, squeeze=False, wspace=0.04, hspace=0.04).flat
    for part, (row, caption) in zip(parts, notable.items(), strict=False):
        verdict = findings.verdict(row, short(findings.true_name(row)))
        confidence = percent(findings.prediction.confidence[row].item())
        part.suptitle(
            f"{caption}\n{short(findings.predicted_name(row))} {confidence}, {verdict}", fontsize=10
        )
        if findings.images is None:
            _show_bars(findings, row, part.subplots())
            continue
        image, bars = part.subplots(1, 2, width_ratios=[1, 1.7])
        show_image(image, findings.images[row])
        frame(image, bool(findings.is_right[row]))
        _show_bars(findings, row, bars)
    figure.legend(
        handles=[
            Patch(facecolor=BLUE, label="the likeliest class"),
            Patch(**TRUE_CLASS, label="the true class, where it is another"),
            Patch(facecolor=GREY, label="other classes"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure


def _show_rows(
    findings: Findings, rows: list[int], grid: Iterable[Axes], describe: Callable[..., str]
) -> None:
    assert findings.images is not None
    for axes, row in zip_longest(grid, rows):
        if row is None:
            axes.set_axis_off()
            continue
        show_image(axes, findings.images[row])
        frame(axes, bool(findings.is_right[row]))
        weight = "normal" if findings.is_right[row] else "bold"
        axes.set_xlabel(describe(findings, row), fontsize=9.5, fontweight=weight)


def _guess(findings: Findings, row: int) -> str:
    confidence = percent(findings.prediction.confidence[row].item())
    guess = f"{short(findings.predicted_name(row))}\n{confidence}"
    if findings.is_right[row]:
        return f"{RIGHT} {guess}\n"
    return f"{WRONG} {guess}\nis {short(findings.true_name(row))}"


def _doubt(findings: Findings, row: int) -> str:
    top = findings.prediction.top_classes[row, :2].tolist()
    shares = findings.prediction.top_probabilities[row, :2].tolist()
    lines = [
        f"{short(findings.class_names[label])} {percent(share)}"
        for label, share in zip(top, shares, strict=True)
    ]
    mark = RIGHT if findings.is_right[row] else WRONG
    return "\n".join([*lines, f"{mark} is {short(findings.true_name(row))}"])


def _show_bars(findings: Findings, row: int, axes: Axes) -> None:
    classes = findings.shown_classes(row)
    shares = findings.prediction.probabilities[row, classes].tolist()
    names = [short(findings.class_names[label]) for label in classes]
    label, target = int(findings.prediction.label[row]), int(findings.target[row])
    bars = axes.barh(
        range(len(classes)),
        shares,
        color=[BLUE if one == label else GREY for one in classes],
        tick_label=names,
    )
    texts = axes.bar_label(bars, [percent(share) for share in shares], padding=3, fontsize=9)
    if target in classes:
        bar = classes.index(target)
        axes.get_yticklabels()[bar].set_fontweight("bold")
        if target != label:
            bars[bar].set(**TRUE_CLASS)
            # as text, because the bar may be too short to see
            texts[bar].set(text=f"{percent(shares[bar])} \N{LEFTWARDS ARROW} true", weight="bold")
    axes.set(xlim=(0, 1.35), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
    axes.invert_yaxis()
