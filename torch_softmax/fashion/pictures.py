"""Own pictures, brought into the form of the data set."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_softmax._command_line import UserError
from torch_softmax.fashion.background import cut_frame, estimate_background, find_garment
from torch_softmax.fashion.errors import DataError, one_line

SIZE = 28
SHARPENING = 0.3
MAX_SIDE = 1024
# the picture is reduced twice, which averages its noise: to find the garment, and to measure it
COARSE_SIDE, COARSE_FRACTION = 256, 0.25
FINE_SIDE, FINE_FRACTION = 2 * SIZE, 0.105


def read_picture(path: str) -> tuple[Tensor, bool]:
    """A picture as the data set has them, and whether its background is plain.

    That is uint8 of shape (1, 28, 28): the garment bright on black, 28 pixels wide or high, in the
    middle; all black if nothing differs from the background.
    """
    brightness = cut_frame(read_brightness(path))
    reduced = resize(brightness, COARSE_SIDE / max(brightness.shape))
    background = estimate_background(reduced)
    garment = find_garment(reduced, background, COARSE_FRACTION)
    if garment is not None:
        side = garment.side * max(brightness.shape) / max(reduced.shape)
        reduced = resize(brightness, FINE_SIDE / side)
        background = estimate_background(reduced)
        garment = find_garment(reduced, background, FINE_FRACTION)
    if garment is None:
        return torch.zeros(1, SIZE, SIZE, dtype=torch.uint8), background.is_plain
    crop = garment.difference[garment.rows, garment.columns]
    return fit_into_square(crop), background.is_plain


def fit_into_square(crop: Tensor) -> Tensor:
    """Resize a garment to 28 pixels, with the contrast and the sharpness of the data set.

    Its images were sharpened, and the brightest pixel of each is 255 (Xiao et al., "Fashion-MNIST",
    2017).
    """
    from PIL import Image, ImageOps

    square = ImageOps.pad(to_picture(crop), (SIZE, SIZE), Image.Resampling.HAMMING, color=0)
    pixels = to_tensor(square)[None]
    pixels *= 255 / pixels.max()
    pixels += SHARPENING * (pixels - F.avg_pool2d(pixels, 3, stride=1, padding=1))
    return pixels.clamp(0, 255).round().to(torch.uint8)


def resize(brightness: Tensor, scale: float) -> Tensor:
    """A picture reduced by a scale below 1, each pixel the mean of those that it replaces."""
    from PIL import Image

    height, width = (max(1, round(min(scale, 1) * n)) for n in brightness.shape)
    return to_tensor(to_picture(brightness).resize((width, height), Image.Resampling.BOX))


def read_brightness(path: str) -> Tensor:
    """Brightness of a picture's pixels, from 0 to 255: float32 of shape (height, width)."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UserError("predict needs the package pillow: pip install pillow") from error
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
        if picture.has_transparency_data:
            picture = put_on_contrast(picture.convert("RGBA"))
        # Pillow would cut off 16 bits and floating point at 255
        is_deep = picture.mode[0] in "IF"
        picture = picture.convert("F" if is_deep else "L").convert("F")
        # a photo has many more pixels than it takes to find a garment
        brightness = to_tensor(picture.reduce(-(-max(picture.size) // MAX_SIDE)))
    # Pillow documents none of the exceptions that a damaged file can raise
    except Exception as error:
        raise DataError(f"{path} cannot be read as a picture: {one_line(error)}") from error
    return brightness * (255 / brightness.max().clamp(min=1e-6)) if is_deep else brightness


def put_on_contrast(picture: Any) -> Any:
    """A transparent picture on black or white, whichever differs more from what it shows."""
    from PIL import Image

    brightness, opacity = to_tensor(picture.convert("L")), to_tensor(picture.getchannel("A"))
    mean = (brightness * opacity).sum() / opacity.sum().clamp(min=1)
    color = "white" if mean < 128 else "black"
    return Image.alpha_composite(Image.new("RGBA", picture.size, color), picture)


def to_tensor(picture: Any) -> Tensor:
    """The pixels of a picture of one channel, float32 of shape (height, width)."""
    pixels = bytearray(picture.convert("F").tobytes())
    return torch.frombuffer(pixels, dtype=torch.float32).view(picture.height, picture.width)


def to_picture(pixels: Tensor) -> Any:
    """The reverse of :func:`to_tensor`."""
    from PIL import Image

    height, width = pixels.shape
    content = bytes(pixels.contiguous().view(torch.uint8).flatten().tolist())
    return Image.frombytes("F", (width, height), content)
