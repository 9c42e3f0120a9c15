"""Annotated images to batches: a rectangle of each image on a canvas, and the boxes on it.

Labels are what Transformers' detectors take: `class_labels` (n,) and `boxes` (n, 4), centre x and
y, width and height as shares of the canvas. Beside them stand the image's number, and the frame:
which rectangle of the image the canvas shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .sources import Annotated

__all__ = ["MEAN", "STD", "Canvas", "Detections", "collate", "evaluation_frame", "training_frame"]

# Of COCO's red, green and blue from 0 to 1, as published.
MEAN = (0.47026115, 0.44719302, 0.40789654)
STD = (0.27809835, 0.27408164, 0.28863828)
MOST_BOXES = 128
SCALES = tuple(round(0.1 * tenth, 1) for tenth in range(6, 14))  # of a crop, 0.6 to 1.3
BORDER = 128  # of an image: no crop's centre lies closer to its edge
JITTER, LIGHTING = 0.4, 0.1
# Principal components of ImageNet's colours (Krizhevsky et al., 2012), red, green and blue.
EIGENVALUES = (0.2141788, 0.01817699, 0.00341571)
EIGENVECTORS = (
    (0.41340352, -0.81221408, 0.41158938),
    (-0.69563484, 0.00994535, 0.71832671),
    (-0.58752847, -0.5832747, -0.56089297),
)
GREY = (0.299, 0.587, 0.114)
MULTIPLE = 32  # sides of a canvas that keeps the image's resolution


class Canvas(NamedTuple):
    """Width and height in pixels, and the rectangle of the image it shows."""

    size: tuple[int, int]
    frame: tuple[float, float, float, float]


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def training_frame(size: tuple[int, int], side: int) -> Canvas:
    """Draw a square around a random point, as large as the longer side times 0.6 to 1.3.

    Args:
        size: width and height of the image.
        side: of the canvas, in pixels.
    """
    length = max(size) * SCALES[int(torch.randint(len(SCALES), ()))]
    centre = []
    for extent in size:
        border = BORDER
        while border > 1 and extent - border <= border:
            border //= 2
        centre.append(_uniform(border, max(border, extent - border)))
    left, top = (middle - length / 2 for middle in centre)
    return Canvas((side, side), (left, top, left + length, top + length))


def evaluation_frame(size: tuple[int, int], side: int | None) -> Canvas:
    """Return the whole image in the middle of a canvas.

    Args:
        size: width and height of the image.
        side: of a square canvas, to which the longer side is fitted; None keeps the resolution, and
            the canvas is the next larger one whose sides are multiples of 32.
    """
    width, height = size
    if side is not None:
        length = max(size)
        left, top = (width - length) / 2, (height - length) / 2
        return Canvas((side, side), (left, top, left + length, top + length))
    wide, high = ((extent | (MULTIPLE - 1)) + 1 for extent in size)
    left, top = width // 2 - wide / 2, height // 2 - high / 2
    return Canvas((wide, high), (left, top, left + wide, top + high))


def jitter_colours(pixels: Tensor) -> Tensor:
    """Change brightness, contrast and saturation in random order, then the light's colour.

    Args:
        pixels: (3, height, width), from 0 to 1.
    """
    grey = torch.tensor(GREY) @ pixels.flatten(1)
    grey, mean = grey.unflatten(0, pixels.shape[1:]), grey.mean()
    for change in torch.randperm(3).tolist():
        gain = _uniform(1 - JITTER, 1 + JITTER)
        towards = (torch.zeros(()), mean, grey)[change]
        pixels = gain * pixels + (1 - gain) * towards
    drawn = LIGHTING * torch.randn(3)
    light = torch.tensor(EIGENVECTORS) @ (torch.tensor(EIGENVALUES) * drawn)
    return pixels + light[:, None, None]


class Detections(Dataset):
    """Annotated images as canvases.

    Args:
        images: what is on them.
        side: of the canvas in pixels; None, in evaluation only, keeps each image's resolution.
        augment: whether crops, mirroring and colours are random.
        mean: of red, green and blue from 0 to 1. Default: COCO's, as published for CenterNet.
        std: likewise.

    Raises:
        ValueError: training canvases have no fixed size.
    """

    def __init__(
        self,
        images: Sequence[Annotated],
        side: int | None,
        *,
        augment: bool,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        if augment and side is None:
            raise ValueError("image_size=None cannot train: the images of a batch differ in size.")
        self.images, self.side, self.augment = images, side, augment
        self.mean, self.std = (torch.tensor(of).view(3, 1, 1) for of in (mean, std))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        found = self.images[place]
        if self.augment:
            canvas = training_frame(found.size, self.side or 0)
        else:
            canvas = evaluation_frame(found.size, self.side)
        shown = found.read().transform(
            canvas.size, Image.Transform.EXTENT, canvas.frame, Image.Resampling.BILINEAR
        )
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1).float() / 255
        boxes, classes = place_boxes(found, canvas)
        if self.augment:
            if torch.rand(()) < 0.5:
                pixels = pixels.flip(-1)
                boxes[:, 0] = 1 - boxes[:, 0]
            pixels = jitter_colours(pixels)
        pixels = (pixels - self.mean) / self.std
        labels = {
            **{"class_labels": classes, "boxes": boxes},
            **{"image_id": torch.tensor([found.number]), "frame": torch.tensor(canvas.frame)},
        }
        return {"pixel_values": pixels, "labels": labels}


def place_boxes(found: Annotated, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Return the boxes that are seen on a canvas, cut at its edges, and their classes."""
    left, top, right, bottom = canvas.frame
    start = np.array([left, top, left, top], np.float32)
    extent = np.array([right - left, bottom - top] * 2, np.float32)
    shares = ((found.boxes - start) / extent).clip(0, 1)
    seen = (shares[:, 2:] > shares[:, :2]).all(-1) & ~found.crowds
    shares, classes = shares[seen][:MOST_BOXES], found.classes[seen][:MOST_BOXES]
    corners = torch.from_numpy(shares)
    boxes = torch.cat(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=-1
    )
    return boxes, torch.from_numpy(classes)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack canvases; labels stay apart, one a image.

    Raises:
        ValueError: the canvases differ in size.
    """
    shapes = {tuple(row["pixel_values"].shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"canvases of {sorted(shapes)} do not fit into one batch; evaluate with "
            "--per_device_eval_batch_size 1, or set --eval_size."
        )
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": [row["labels"] for row in rows],
    }
