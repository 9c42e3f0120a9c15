"""Photographs as a torch data set: decoded, transformed, and passed over where unreadable.

Training passes over an image that cannot be decoded and takes the next one; it names it in a file.
Evaluation cannot do that without changing what is measured, so its images are all decoded once
before the first step (`find_unreadable`), and those that fail are left out and counted.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .sources import Photos

__all__ = ["PhotoSet", "decode", "find_unreadable"]

logger = logging.getLogger(__name__)
Transform = Callable[[Image.Image], Tensor]
TRIES = 100  # images in a row that may be unreadable before something else must be wrong


def decode(content: bytes) -> Image.Image:
    """Return an image in RGB.

    Raises:
        ValueError: it cannot be decoded, or is larger than Pillow admits.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            return image.convert("RGB")
    # Pillow's plugins let through what their parsers raise.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


class PhotoSet(Dataset[tuple[Tensor, int]]):
    """Pairs of pixels (3, height, width) and label.

    Args:
        photos: where the images are.
        transform: makes pixels of an image.
        numbers: which images, in which order. Default: all.
        report: a file that gets a line for each unreadable image. Default: none.
    """

    def __init__(
        self,
        photos: Photos,
        transform: Transform,
        numbers: Sequence[int] | np.ndarray | None = None,
        report: Path | None = None,
    ) -> None:
        self._photos = photos
        self._transform = transform
        self._numbers = np.arange(len(photos)) if numbers is None else np.asarray(numbers)
        self._report = report

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for step in range(min(TRIES, len(self))):
            number = int(self._numbers[(index + step) % len(self)])
            try:
                image = decode(self._photos.read(number))
            except (ValueError, OSError) as error:
                self._complain(number, error)
                continue
            return self._transform(image), self._photos.label(number)
        raise RuntimeError(
            f"{step + 1} images in a row cannot be read, the last of them "
            f"{self._photos.where(number)}; is the disk still there?"
        )

    def _complain(self, number: int, error: Exception) -> None:
        where = self._photos.where(number)
        logger.warning(f"{where} cannot be read ({error}); the next image takes its place.")
        if self._report is not None:
            # A short line is appended at once, whichever worker writes it.
            with self._report.open("a", encoding="utf-8") as file:
                file.write(f"{where}\n")


class _Reader:
    """Tries to decode an image; an object, so that processes can be given it."""

    def __init__(self, photos: Photos) -> None:
        self._photos = photos

    def __call__(self, number: int) -> str | None:
        try:
            decode(self._photos.read(number))
        except (ValueError, OSError) as error:
            return f"{self._photos.where(number)}: {error}"
        return None


def find_unreadable(
    photos: Photos, processes: int, numbers: Collection[int] | None = None
) -> dict[int, str]:
    """Decode every image once; return what is wrong with those that cannot be, by number."""
    chosen = list(range(len(photos)) if numbers is None else numbers)
    reader = _Reader(photos)
    if processes <= 1 or len(chosen) < 1000:
        found = [*map(reader, chosen)]
    else:
        with ProcessPoolExecutor(
            processes, mp_context=torch.multiprocessing.get_context("spawn")
        ) as pool:
            found = list(pool.map(reader, chosen, chunksize=256))
    return {n: problem for n, problem in zip(chosen, found, strict=True) if problem is not None}
