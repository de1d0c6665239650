"""Images that show no garment, uint8 of shape (n, 1, 28, 28)."""

import torch
from PIL import Image, ImageDraw, ImageFont


def draw(method, *arguments, **options):
    """An image that one method of Pillow's ImageDraw makes."""
    picture = Image.new("L", (28, 28))
    getattr(ImageDraw.Draw(picture), method)(*arguments, **options)
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, 28, 28)


def noise():
    return torch.randint(256, (100, 1, 28, 28), dtype=torch.uint8)


def digits():
    """Digits of the size and in the place of MNIST's."""
    fonts = [ImageFont.load_default(size) for size in (22, 26, 30)]
    return torch.stack(
        [
            draw("text", (x, 14), digit, fill=255, font=font, anchor="mm")
            for digit in "0123456789"
            for font in fonts
            for x in (12, 14, 16)
        ]
    )


def shapes():
    """Circles, rings, triangles, diamonds and crosses."""
    images = []
    for low, high in ((2, 26), (5, 23), (8, 20)):
        for shade in (130, 255):
            triangle = [(14, low), (high, high), (low, high)]
            diamond = [(14, low), (high, 14), (14, high), (low, 14)]
            cross = draw("line", (low, low, high, high), fill=shade, width=3)
            images += [
                draw("ellipse", (low, low, high, high), fill=shade),
                draw("ellipse", (low, low, high, high), outline=shade, width=3),
                draw("polygon", triangle, fill=shade),
                draw("polygon", diamond, fill=shade),
                cross.maximum(cross.flip(-1)),
            ]
    return torch.stack(images)
