"""Photographs to pixels, as networks are trained and tested on ImageNet; with Pillow alone.

Training: `random_resized_crop`, `random_flip`, `to_pixels`. Evaluation: `central_crop`,
`to_pixels`. What is random is drawn from torch's own generator, which a `DataLoader` seeds anew in
every worker.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "central_crop",
    "random_flip",
    "random_resized_crop",
    "to_pixels",
]

# Of red, green and blue from 0 to 1, over the training images.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TRIES = 10  # for a crop that fits, before the largest central one is taken


def random_resized_crop(
    image: Image.Image,
    size: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """Cut a rectangle of random area, shape and place, and resize it to a square.

    Args:
        image: of any size.
        size: side of the square, in pixels.
        area: least and greatest share of the image. Default: 0.08 and 1, as for ImageNet.
        ratio: least and greatest width over height, drawn on a logarithmic scale. Default: 3/4 and
            4/3.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
    """
    return image.resize((size, size), Image.Resampling.BILINEAR, box=_draw_box(image, area, ratio))


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _draw_box(
    image: Image.Image, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return left, upper, right and lower edge of a rectangle within the image."""
    for _ in range(TRIES):
        pixels = image.width * image.height * _uniform(*area)
        shape = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(torch.randint(image.width - width + 1, ()))
            upper = int(torch.randint(image.height - height + 1, ()))
            return left, upper, left + width, upper + height
    width = min(image.width, round(image.height * ratio[1]))
    height = min(image.height, round(image.width / ratio[0]))
    left, upper = (image.width - width) // 2, (image.height - height) // 2
    return left, upper, left + width, upper + height


def random_flip(image: Image.Image) -> Image.Image:
    """Mirror every other image, left to right."""
    if torch.rand(()) < 0.5:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def central_crop(image: Image.Image, size: int, *, shorter: int) -> Image.Image:
    """Resize the shorter side, then cut the square in the middle.

    Args:
        image: of any size.
        size: side of the square, in pixels.
        shorter: length of the shorter side before, in pixels; at least `size`.

    Raises:
        ValueError: the square does not fit.
    """
    if shorter < size:
        raise ValueError(f"shorter={shorter} must be at least size={size}.")
    scale = shorter / min(image.size)
    width, height = (max(shorter, int(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, upper, left + size, upper + size))


def to_pixels(
    image: Image.Image,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Return normalized pixels, float32, (3, height, width).

    Args:
        image: of any mode.
        mean: of red, green and blue from 0 to 1. Default: ImageNet's.
        std: likewise. Default: ImageNet's.
    """
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1).contiguous()
