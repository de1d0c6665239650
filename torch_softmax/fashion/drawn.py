"""Drawn garments: a stand-in where Fashion-MNIST cannot be had."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# a thick line from x, y to x, y, and half its width at each end; (-1, -1) is the upper left corner
# of the image and (1, 1) the lower right one
Stroke = tuple[float, float, float, float, float, float]
TORSO = (0.16, -0.5, 0.17, 0.5, 0.19, 0.19)
# in the order of the labels; a garment without a stroke on the left is mirrored
GARMENTS: dict[str, tuple[Stroke, ...]] = {
    "T-shirt/top": (TORSO, (0.34, -0.5, 0.6, -0.2, 0.13, 0.12)),
    "Trouser": ((0, -0.75, 0.18, -0.7, 0.13, 0.13), (0.16, -0.75, 0.24, 0.8, 0.17, 0.1)),
    "Pullover": (TORSO, (0.34, -0.5, 0.6, 0.4, 0.13, 0.1)),
    "Dress": ((0.12, -0.7, 0.2, 0.7, 0.14, 0.26), (0.2, -0.6, 0.36, -0.4, 0.1, 0.1)),
    "Coat": ((0.23, -0.5, 0.27, 0.7, 0.19, 0.2), (0.38, -0.5, 0.66, 0.4, 0.13, 0.1)),
    "Sandal": (
        (-0.7, 0.45, 0.7, 0.42, 0.07, 0.1),
        (-0.5, 0.4, -0.1, 0.1, 0.06, 0.06),
        (0.7, 0.4, 0.35, 0, 0.06, 0.06),
    ),
    "Shirt": ((0.2, -0.5, 0.2, 0.55, 0.19, 0.19), (0.34, -0.5, 0.6, 0.2, 0.13, 0.1)),
    "Sneaker": ((-0.7, 0.42, 0.7, 0.42, 0.1, 0.1), (-0.4, 0.35, 0.5, 0.2, 0.12, 0.2)),
    "Bag": (
        (0, 0.35, 0.45, 0.35, 0.28, 0.25),
        (0.35, 0.2, 0.2, -0.3, 0.06, 0.06),
        (0.2, -0.3, 0, -0.35, 0.06, 0.06),
    ),
    "Ankle boot": ((-0.6, 0.4, 0.6, 0.4, 0.14, 0.14), (0.35, 0.3, 0.4, -0.4, 0.24, 0.22)),
}
CLASSES = tuple(GARMENTS)


def draw_garments(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images, uint8 of shape (count, 1, 28, 28), of the ten classes in turn, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(count, 1, 28, 28, dtype=torch.uint8)
    for label, garment in enumerate(GARMENTS.values()):
        of_class = images[label :: len(CLASSES), 0]
        of_class.copy_(draw_class(garment, len(of_class), generator))
    return images, torch.arange(count) % len(CLASSES)


def draw_class(strokes: tuple[Stroke, ...], n: int, generator: torch.Generator) -> Tensor:
    """Draw n variants of one garment, uint8 of shape (n, 28, 28)."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    axis = torch.linspace(-1, 1, 28)
    y = (axis.view(28, 1) - uniform(-0.12, 0.12)) * uniform(1, 1.3)
    x = (axis - uniform(-0.12, 0.12)) * uniform(1, 1.3) + uniform(-0.15, 0.15) * y
    if all(stroke[0] >= 0 for stroke in strokes):
        x = x.abs()
    outside = torch.full((n, 28, 28), math.inf)
    for stroke in strokes:
        x0, y0, x1, y1, r0, r1 = (number + uniform(-0.04, 0.04) for number in stroke)
        length = uniform(0.7, 1.2)
        dx, dy = length * (x1 - x0), length * (y1 - y0)
        # the nearest point of the stroke, from 0 at its start to 1 at its end
        along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        distance = torch.hypot(x - x0 - along * dx, y - y0 - along * dy)
        outside = torch.minimum(outside, distance - r0 - along * (r1 - r0))
    coarse = torch.randn(n, 1, 9, 9, generator=generator)
    blotches = uniform(0, 0.25) * F.interpolate(coarse, size=28, mode="bilinear").squeeze(1)
    stripes = uniform(0, 0.25) * torch.sin(uniform(-15, 15) * x + uniform(-15, 15) * y)
    grain = 0.06 * torch.randn(n, 28, 28, generator=generator)
    shade = uniform(0.25, 1) * (1 + blotches + stripes) + grain
    pixels = torch.sigmoid(-outside * uniform(15, 40)) * shade
    return (255 * pixels.clamp(0, 1)).to(torch.uint8)
