"""The silhouettes as a torch data set that hands out whole batches, for the small form."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from recipes.common.silhouettes import Split, to_pixels

__all__ = ["SmallImages", "take_batch"]

Batch = dict[str, Tensor]


class SmallImages(Dataset[Batch]):
    """Batches of pixels (batch, 1, 28, 28) and labels (batch,).

    Args:
        split: of `load_silhouettes`.
        flip: whether every other image is mirrored at random, left to right.
    """

    def __init__(self, split: Split, *, flip: bool) -> None:
        # In the layout in which convolutions on a CPU are quickest.
        self._pixels = to_pixels(split.images).contiguous(memory_format=torch.channels_last)
        self._labels = split.labels
        self._flip = flip

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch that a `DataLoader` asks for at once."""
        chosen = torch.as_tensor(indices)
        pixels = self._pixels[chosen]
        if self._flip:
            mirrored = torch.rand(len(chosen)) < 0.5
            pixels[mirrored] = pixels[mirrored].flip(-1)
        return {"pixel_values": pixels, "labels": self._labels[chosen]}


def take_batch(batch: Batch) -> Batch:
    """Pass on what is a batch; the collator for `SmallImages`."""
    return batch
