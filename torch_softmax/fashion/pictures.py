"""Own pictures, brought into the form of the data set."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_softmax._command_line import UserError
from torch_softmax.fashion.errors import DataError, one_line


def read_picture(path: str) -> tuple[Tensor, bool]:
    """A picture as the data set has them, and whether it had a plain background as those had.

    That is uint8 of shape (1, 28, 28): bright on black, 28 pixels wide or high, in the middle; all
    black where nothing differs from the background.
    """
    brightness = read_brightness(path)
    border = torch.cat([brightness[0], brightness[-1], brightness[:, 0], brightness[:, -1]])
    background = border.median()
    # less than 60 % of the border is one shade in 2 of 1000 images of the data set
    is_plain = ((border - background).abs() <= 13).float().mean().item() > 0.6
    sign = -1 if background > 127 else 1
    thing = (sign * (brightness - background)).clamp(min=0)
    # not each stray pixel belongs to the thing
    rows, columns = (((thing > 13).float().mean(dim) > 0.01).nonzero() for dim in (1, 0))
    canvas = torch.zeros(28, 28)
    if len(rows) and len(columns):
        thing = thing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = (max(1, round(28 * n / max(thing.shape))) for n in thing.shape)
        top, left = (28 - height) // 2, (28 - width) // 2
        canvas[top : top + height, left : left + width] = F.interpolate(
            thing[None, None], size=(height, width), mode="bilinear", antialias=True
        )
    return canvas.round().to(torch.uint8).unsqueeze(0), is_plain


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
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        if picture.mode.startswith("I;"):
            # 16 bits in one order of bytes or the other
            picture = picture.convert("I")
        if picture.mode == "LAB":
            # which Pillow does not convert; it begins with the lightness
            picture = picture.getchannel(0)
        # more than 8 bits, which Pillow would cut off at 255
        is_deep = picture.mode in ("I", "F")
        pixels = picture.convert("F" if is_deep else "L").tobytes()
    # Pillow documents none of what a damaged file can raise
    except Exception as error:
        raise DataError(f"{path} cannot be read as a picture: {one_line(error)}") from error
    dtype = torch.float32 if is_deep else torch.uint8
    brightness = torch.frombuffer(bytearray(pixels), dtype=dtype).float()
    if is_deep:
        # no file says what its white is
        brightest = brightness.max().item()
        levels = (1, 255, 1023, 4095, 16383, 65535)
        white_level = next((level for level in levels if brightest <= level), brightest)
        brightness = (brightness * 255 / white_level).clamp(min=0)
    return brightness.view(picture.height, picture.width)
