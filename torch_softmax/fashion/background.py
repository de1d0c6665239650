"""The background of a picture, estimated from its border, and the garment in front of it.

Brightness is float32 of shape (height, width), from 0 to 255. The background is one shade or a
gradient. The garment is what differs from it, brighter or darker; a shadow also differs, but fades
into the background where a garment has an edge.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NOTICEABLE = 13  # a difference of brightness that is no noise
SHARP_NEIGHBORS = 5  # of 9 pixels: fewer are noise
# as fractions of the contrast of the garment
SHADOW_STEP = 0.03  # from pixel to pixel; an edge is steeper
SHADOW_DEPTH = 0.35
SHADOW_AREA = 0.2  # of all that differs from the background
# in standard deviations of the noise
NOISE_LIMIT, NOISE_STEP = 4, 0.25


class Background(NamedTuple):
    """The brightness behind the garment."""

    shade: Tensor
    noise: float  # standard deviation
    is_plain: bool


class Garment(NamedTuple):
    """The difference of a picture from its background, and where the garment is."""

    difference: Tensor
    rows: slice
    columns: slice

    @property
    def side(self) -> int:
        """The longer side in pixels."""
        return max(self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)


def estimate_background(brightness: Tensor) -> Background:
    """Fit one shade or a gradient to the border."""
    height, width = brightness.shape
    ring = max(1, min(height, width) // 50)
    inside = F.pad(torch.ones(max(height - 2 * ring, 0), max(width - 2 * ring, 0)), [ring] * 4)
    border = inside[:height, :width] == 0
    y = torch.linspace(-1, 1, height).view(-1, 1).expand(height, width)
    x = torch.linspace(-1, 1, width).expand(height, width)
    points = torch.stack([torch.ones_like(x), x, y], dim=-1)
    values = brightness[border]
    flat = torch.full_like(brightness, values.median().item())
    gradient = points @ fit_by_least_deviations(points[border], values)
    # a garment that touches the border can tilt the gradient: it has to fit clearly better
    error_flat, error_gradient = (
        (values - shade[border]).abs().clamp(max=NOTICEABLE).mean() for shade in (flat, gradient)
    )
    shade = gradient if error_gradient < 0.9 * error_flat else flat
    deviation = (values - shade[border]).abs()
    return Background(
        shade=shade,
        # of a normal distribution with this median deviation
        noise=1.4826 * deviation.median().item(),
        # the garment covers more than 40 % of the border in 2 of 1000 images of the data set
        is_plain=(deviation <= NOTICEABLE).float().mean().item() > 0.6,
    )


def fit_by_least_deviations(points: Tensor, values: Tensor) -> Tensor:
    """Coefficients with the least sum of absolute errors, which outliers do not move.

    By least squares with weights 1 / error, repeated.
    """
    coefficients = torch.tensor([values.median().item(), 0.0, 0.0])
    tiny = 1e-6 * torch.eye(3)
    for _ in range(20):
        weights = 1 / (values - points @ coefficients).abs().clamp(min=1)
        weighted = points.T * weights
        coefficients = torch.linalg.solve(weighted @ points + tiny, weighted @ values)
    return coefficients


def find_garment(brightness: Tensor, background: Background, fraction: float) -> Garment | None:
    """What differs from the background by a fraction of the contrast at least; None if nothing."""
    difference = brightness - background.shade
    limit = max(4.0, NOISE_LIMIT * background.noise)
    visible = difference[difference.abs() > limit]
    brighter, darker = visible.clamp(min=0).square().sum(), visible.clamp(max=0).square().sum()
    # most of it has one sign: the rest is shadow or gloss
    if max(brighter, darker) > 0.8 * (brighter + darker):
        difference = (difference if brighter > darker else -difference).clamp(min=0)
    difference = difference.abs()
    visible = difference[difference > limit]
    contrast = visible.quantile(0.98).item() if len(visible) else 0.0
    if contrast < NOTICEABLE:
        return None
    limit = max(limit, fraction * contrast)
    shadow = find_shadow(difference, limit, contrast, background.noise)
    difference = difference.masked_fill(shadow, 0)
    is_garment = difference > limit
    neighbors = F.avg_pool2d(is_garment.float()[None, None], 3, stride=1, padding=1)[0, 0]
    is_garment &= neighbors * 9 > SHARP_NEIGHBORS - 0.5
    if not is_garment.any():
        return None
    rows, columns = (is_garment.any(dim).nonzero().flatten() for dim in (1, 0))
    return Garment(
        difference.masked_fill(difference <= limit / 2, 0),
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )


def find_shadow(difference: Tensor, limit: float, contrast: float, noise: float) -> Tensor:
    """Pixels above the limit that small steps connect to the border, if there are many."""
    step = SHADOW_STEP * contrast + NOISE_STEP * noise
    is_low = difference <= limit
    can_be = difference <= SHADOW_DEPTH * contrast
    small_x = (difference[:, 1:] - difference[:, :-1]).abs() <= step
    small_y = (difference[1:] - difference[:-1]).abs() <= step
    reached = F.pad(torch.zeros_like(can_be)[1:-1, 1:-1], [1] * 4, value=True) & can_be
    n_before, n_reached = -1, int(reached.sum())
    while n_reached > n_before:
        grown = reached.clone()
        grown[:, 1:] |= reached[:, :-1] & (small_x | is_low[:, 1:])
        grown[:, :-1] |= reached[:, 1:] & (small_x | is_low[:, :-1])
        grown[1:] |= reached[:-1] & (small_y | is_low[1:])
        grown[:-1] |= reached[1:] & (small_y | is_low[:-1])
        reached = grown & can_be
        n_before, n_reached = n_reached, int(reached.sum())
    shadow = reached & ~is_low
    # a few pixels are the faint edges of the garment
    is_large = shadow.sum() > SHADOW_AREA * (difference > limit).sum()
    return shadow if is_large else torch.zeros_like(shadow)


def cut_frame(brightness: Tensor) -> Tensor:
    """The picture without a frame or bars of one shade around it, such as a phone's margin.

    A garment on a plain background looks alike; but inside a frame the border is plain again.
    """
    differs = (brightness - brightness[0, 0]).abs() > NOTICEABLE
    rows, columns = (differs.any(dim).nonzero().flatten() for dim in (1, 0))
    if not len(rows):
        return brightness
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = brightness.shape
    # the edges of a frame are blurred
    blur = max(height, width) // 100
    inner = brightness[
        top + blur * (top > 0) : bottom - blur * (bottom < height),
        left + blur * (left > 0) : right - blur * (right < width),
    ]
    if inner.numel() < 0.4 * brightness.numel() or inner.numel() == brightness.numel():
        return brightness
    border = torch.cat([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
    is_plain = ((border - border.median()).abs() <= NOTICEABLE).float().mean() > 0.97
    return inner if is_plain else brightness
