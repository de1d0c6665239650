"""Plot a report: fraction of the floor that each provider reaches, over the number of classes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_softmax._atomic_file import write_atomically
from torch_softmax._command_line import UserError
from torch_softmax.benchmark.report import Measurement, Report

# the palette of Okabe and Ito for colour-blind readers, and a marker per provider
STYLES = {
    "ours": ("#D55E00", "o", "-"),
    "ours in place": ("#E69F00", "s", "-"),
    "eager": ("#000000", "X", "--"),
    "compile": ("#0072B2", "^", "--"),
    "liger": ("#009E73", "D", ":"),
    "quack": ("#CC79A7", "v", ":"),
    "quack in place": ("#56B4E9", "P", ":"),
}
PANEL_INCHES = (5.4, 3.8)
PANELS_IN_ROW = 3


def check_plot_file(path: Path) -> None:
    """Raise UserError if ``plot`` cannot write a file of this type."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "argument --plot: needs the package matplotlib: pip install 'torch-softmax[benchmark]'"
        ) from error
    types = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in types:
        raise UserError(
            f"argument --plot: needs a name that ends in .{', .'.join(sorted(types))}, got {path}"
        )


def plot(report: Report, path: Path) -> None:
    """Write the plot, with a panel for each operator, mode, dtype and number of threads."""
    from matplotlib.figure import Figure

    def panel_of(m: Measurement) -> tuple[Any, ...]:
        return (m.operator, m.mode, m.dtype, m.threads, m.ignored)

    measurements = [m for m in report.measurements if m.times]
    if not measurements:
        raise UserError("argument --plot: needs a measurement that did not fail, got none")
    panels: dict[tuple[Any, ...], list[Measurement]] = {}
    for m in measurements:
        panels.setdefault(panel_of(m), []).append(m)
    n_cols = 2 if len(panels) == 4 else min(len(panels), PANELS_IN_ROW)
    n_rows = -(-len(panels) // n_cols)
    size = (PANEL_INCHES[0] * n_cols, PANEL_INCHES[1] * n_rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    grid = list(figure.subplots(n_rows, n_cols, squeeze=False).flat)
    for axes, (key, group) in zip(grid, panels.items(), strict=False):
        _draw(axes, key, group)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()[1:]}
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    figure.suptitle(report.machine["device"])
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=150)
    write_atomically(path, picture.getvalue())


def _draw(axes: Any, key: tuple[Any, ...], measurements: Sequence[Measurement]) -> None:
    operator, mode, dtype, threads, ignored = key
    axes.axhline(1, color="0.6", linewidth=1)
    top = 1.0
    for name, style in STYLES.items():
        points = line_of([m for m in measurements if m.provider == name])
        if points:
            colour, marker, dashes = style
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                linestyle=dashes,
                markersize=6,
                label=name,
            )
            top = max(top, *(share for _, share in points))
    axes.set_xscale("log")
    ticks: list[int] = []
    for classes in sorted({m.shape[1] for m in measurements}):
        # closer labels would overlap
        if not ticks or classes >= 1.3 * ticks[-1]:
            ticks.append(classes)
    axes.set_xticks(ticks, [f"{classes:,}" for classes in ticks], rotation=40, fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(0, 1.08 * top)
    axes.set_xlabel("classes")
    axes.set_ylabel("fraction of the floor (floor / time)")
    axes.grid(alpha=0.25)
    about = [operator, mode, dtype]
    about += [f"{threads} thread{'s' * (threads != 1)}"] if threads else []
    about += [f"{ignored:.0%} ignored"] if ignored else []
    axes.set_title(", ".join(about), fontsize=10)


def line_of(measurements: Sequence[Measurement]) -> list[tuple[int, float]]:
    """Classes and fraction of the floor, for the largest shape of each number of classes."""
    largest: dict[int, Measurement] = {}
    for m in sorted(measurements, key=lambda m: m.floor_bytes):
        largest[m.shape[1]] = m
    return [(classes, largest[classes].share_of_copy) for classes in sorted(largest)]
