"""The style of all plots, independent of the caller's matplotlib settings."""

import io
from contextlib import AbstractContextManager

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torch_softmax.report.findings import Findings

# from the palette of Okabe and Ito, distinguishable with every kind of colour blindness
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#BBBBBB"
DOTS_PER_INCH = 144
MAX_NAME_LENGTH = 16
STYLE = {
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib, and has the glyphs of RIGHT and WRONG
    "font.size": 9,
    "hatch.linewidth": 1.5,
    # a class name may hold dollar signs
    "text.parse_math": False,
}


def style() -> AbstractContextManager[None]:
    """A context with the style of the report, which restores the caller's style."""
    return matplotlib.style.context(["default", STYLE])


def new_figure(findings: Findings, heading: str, width: float, height: float) -> Figure:
    """An empty figure with a size in inches, a heading and the caller's note."""
    figure = Figure(figsize=(width, height), layout="constrained")
    lines = [heading, *([f"[{findings.note}]"] if findings.note else [])]
    figure.suptitle("\n".join(lines), fontsize=13, fontweight="bold")
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="png",
        dpi=DOTS_PER_INCH,
        bbox_inches="tight",
        pad_inches=0.15,
        metadata={"Title": figure.get_suptitle()},
    )
    return buffer.getvalue()


def show_image(axes: Axes, pixels: Tensor) -> None:
    """Show an image, uint8 of shape (height, width, 1 or 3), without axes."""
    axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def frame(axes: Axes, is_right: bool) -> None:
    """Frame an image: thin and solid if the prediction is right, else thick and dashed."""
    axes.spines[:].set(
        color=BLUE if is_right else VERMILLION,
        linewidth=1.2 if is_right else 3,
        linestyle="-" if is_right else (0, (3, 1.5)),
        # projecting ends would close the gaps between the dashes
        capstyle="butt",
    )


def short(name: str) -> str:
    """A class name, shortened to MAX_NAME_LENGTH."""
    return (
        name
        if len(name) <= MAX_NAME_LENGTH
        else name[: MAX_NAME_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
