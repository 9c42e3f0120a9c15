"""Images to batches: values in [0, 1], and in training a random crop and a flip."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from .sources import Images

__all__ = ["Collator", "ImageDataset"]


class ImageDataset(Dataset[dict[str, Tensor]]):
    """Images that lie in memory, one by one.

    Args:
        images: pixels and labels.
        augment: whether the collator may move and flip them.
    """

    def __init__(self, images: Images, *, augment: bool = False) -> None:
        self.images = images
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {
            "pixels": self.images.pixels[row],
            "label": self.images.labels[row],
            "augment": torch.tensor(self.augment),
        }


@dataclass(frozen=True)
class Collator:
    """Stack images into `pixel_values` (N, C, H, W) in [0, 1] and `labels` (N,).

    Args:
        padding: pixels of black at each side before a random crop of the first size; 0 crops
            nothing.
        flip: whether half of the images are mirrored.
    """

    padding: int
    flip: bool

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the batch; random numbers are torch's global ones."""
        images = torch.stack([row["pixels"] for row in rows])
        labels = torch.stack([row["label"] for row in rows])
        if rows[0]["augment"]:
            images = self._crop(images) if self.padding else images
            images = self._mirror(images) if self.flip else images
        return {"pixel_values": images.float() / 255, "labels": labels}

    def _crop(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        padded = functional.pad(images, [self.padding] * 4)
        tops, lefts = torch.randint(2 * self.padding + 1, (2, count)).tolist()
        return torch.stack(
            [
                image[:, top : top + height, left : left + width]
                for image, top, left in zip(padded, tops, lefts, strict=True)
            ]
        )

    def _mirror(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images)) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
