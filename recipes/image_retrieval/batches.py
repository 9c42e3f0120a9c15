"""Images to batches: pixels, labels and roles; and batches with several images of each class."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from recipes.common.photos import central_crop, random_flip, random_resized_crop, to_pixels

from .sources import Item

__all__ = ["ClassSampler", "RetrievalSet", "icon_pixels", "photo_transform", "turn_and_move"]

TURN, SCALES, MOVE = 15, (0.8, 1.1), 2  # of icons: degrees, sizes, pixels


class RetrievalSet(Dataset[dict[str, Any]]):
    """Images as the model and its evaluation take them.

    Args:
        items: the images.
        transform: makes pixels (channel, height, width) of one.
        roles: whether each image says what it is to others, as evaluation needs it.
    """

    def __init__(
        self, items: Sequence[Item], transform: Callable[[Image.Image], Tensor], *, roles: bool
    ) -> None:
        self.items, self.transform, self.roles = items, transform, roles

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict[str, Any]:
        item = self.items[place]
        row = {"pixel_values": self.transform(item.read()), "labels": torch.tensor(item.label)}
        return row | {"roles": torch.tensor(item.role)} if self.roles else row


def photo_transform(size: int, *, augment: bool) -> Callable[[Image.Image], Tensor]:
    """Return what makes pixels of a photograph.

    Args:
        size: side of the square, in pixels.
        augment: random crop and mirroring; otherwise the middle, of 8/7 of the size.
    """
    return _Photo(size, augment)


class _Photo:
    # An object, so that worker processes can be handed it.
    def __init__(self, size: int, augment: bool) -> None:
        self.size, self.augment = size, augment

    def __call__(self, image: Image.Image) -> Tensor:
        if self.augment:
            return to_pixels(random_flip(random_resized_crop(image, self.size)))
        return to_pixels(central_crop(image, self.size, shorter=round(self.size * 8 / 7)))


def icon_pixels(image: Image.Image) -> Tensor:
    """Return a grey image as pixels (1, height, width) in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32))
    return (pixels / 127.5 - 1)[None]


def turn_and_move(image: Image.Image) -> Tensor:
    """Turn, resize and move an icon a little, and return its pixels.

    Icons are not mirrored: that would make "arrow-right" of "arrow-left".
    """
    turn, scale, right, down = torch.rand(4).tolist()
    angle = math.radians(TURN * (2 * turn - 1))
    size = SCALES[0] + (SCALES[1] - SCALES[0]) * scale
    cosine, sine = math.cos(angle) / size, math.sin(angle) / size
    middle = (image.width - 1) / 2
    x, y = (middle + MOVE * (2 * by - 1) for by in (right, down))
    # Where each pixel comes from: the middle, moved, goes to the middle.
    affine = (
        *(cosine, sine, middle - cosine * x - sine * y),
        *(-sine, cosine, middle + sine * x - cosine * y),
    )
    return icon_pixels(
        image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    )


class ClassSampler(Sampler[int]):
    """Image numbers such that every batch has several images of each of its classes.

    A batch's classes are drawn without replacement, a class's images too, as long as there are
    enough. An epoch's draw depends on seed and epoch only, so a resumed run meets the same batches.

    Args:
        labels: of the images.
        per_class: images of a class in a batch.
        batch_size: a multiple of it.
        seed: of the draws.

    Raises:
        ValueError: the batch is no multiple of `per_class`, or has more classes than there are.
    """

    def __init__(self, labels: Sequence[int], per_class: int, batch_size: int, seed: int) -> None:
        self.of_class = [
            np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))
        ]
        if per_class < 2 or batch_size % per_class:
            raise ValueError(
                f"per_class={per_class} must be 0, or 2 or more and a divisor of the "
                f"{batch_size} images of a batch."
            )
        if batch_size // per_class > len(self.of_class):
            raise ValueError(
                f"a batch of {batch_size} with per_class={per_class} needs more classes than the "
                f"{len(self.of_class)} there are."
            )
        self.per_class, self.batch_size, self.seed = per_class, batch_size, seed
        self.batches = len(labels) // batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self.seed, self.epoch))
        classes = self.batch_size // self.per_class
        for _ in range(self.batches):
            for chosen in draw.choice(len(self.of_class), classes, replace=False):
                images = self.of_class[chosen]
                few = len(images) < self.per_class
                yield from draw.choice(images, self.per_class, replace=few).tolist()
