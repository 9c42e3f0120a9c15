"""Where the images are: CIFAR-10 in its three layouts, and silhouettes that install with a package.

Every function returns images (N, channels, height, width) uint8 and labels (N,) of the splits
`train` and `test`; `load` takes the validation set out of the training set.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor

from recipes.common.silhouettes import CLASSES as ANIMALS
from recipes.common.silhouettes import load_silhouettes

__all__ = ["CIFAR10_SIZES", "SOURCES", "Images", "Source", "first", "load"]

logger = logging.getLogger(__name__)

# https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR10_SIZES = {"train": 50_000, "test": 10_000}
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR10_SHAPE = (3, 32, 32)
BINARY_FILES = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
DEAL_SEED = 20060  # every run of every optimizer keeps the same images back


class Images(NamedTuple):
    """Images (N, channels, height, width) uint8 and their labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def select(self, rows: Tensor) -> "Images":
        """Return the images at some places."""
        return Images(self.pixels[rows], self.labels[rows])


class Source(NamedTuple):
    """The splits `train`, `validation` and `test`, and what the classes are called."""

    splits: dict[str, Images]
    names: tuple[str, ...]


def load(source: str, location: str | None, *, validation: int, sizes: bool = True) -> Source:
    """Open a data set.

    Args:
        source: a key of `SOURCES`.
        location: the Hub's id or a copy of it on disk; a folder; none for the silhouettes.
        validation: how many training images to keep back, the same number of each class as far as
            it goes. Ignored where the data set has a validation set of its own.
        sizes: whether the numbers of images must be the published ones.

    Raises:
        ValueError: there is no such source, the folder has not the files it should have, or the
            numbers are not the published ones.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r} is unknown; known sources: {', '.join(SOURCES)}.")
    splits, names = SOURCES[source](location)
    if sizes and source != "silhouettes":
        _assert_sizes(splits, location)
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(splits["train"], validation)
    return Source(splits, names)


def _assert_sizes(splits: Mapping[str, Images], location: str | None) -> None:
    for name, total in CIFAR10_SIZES.items():
        counts = torch.bincount(splits[name].labels, minlength=10).tolist()
        if counts != [total // 10] * 10:
            raise ValueError(
                f"{location}: {name} has {counts} images a class, not {total // 10:,} of each of "
                "ten; complete the data, or pass --sizes false for images of your own."
            )


def hold_out(images: Images, count: int) -> tuple[Images, Images]:
    """Split off `count` images, the same number of each class as far as it goes.

    Raises:
        ValueError: `count` is below 1, or leaves nothing to train on.
    """
    total = len(images.labels)
    if not 0 < count < total:
        raise ValueError(f"validation_images={count} must be from 1 to {total - 1}.")
    order = _deal(images.labels)
    return images.select(order[count:].sort().values), images.select(order[:count].sort().values)


def first(images: Images, count: int | None) -> Images:
    """Return `count` of the images, the same number of each class as far as it goes, or all.

    Raises:
        ValueError: there are fewer, or `count` is below 1.
    """
    if count is None:
        return images
    total = len(images.labels)
    if not 0 < count <= total:
        raise ValueError(f"{count} images are wanted of {total}; lower the number, or leave it.")
    return images.select(_deal(images.labels)[:count])


def _deal(labels: Tensor) -> Tensor:
    """Return an order in which the classes take turns: one image of each, then another."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(DEAL_SEED))
    seen: dict[int, int] = {}
    turn = []
    for label in labels[order].tolist():
        turn.append(seen.get(label, 0))
        seen[label] = turn[-1] + 1
    return order[torch.tensor(turn).argsort(stable=True)]


def _from_hub(location: str | None) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Read the Hub's parquet files: columns `img` and `label`."""
    found = load_dataset(location or "uoft-cs/cifar10")
    splits = {}
    for name in CIFAR10_SIZES:
        if name not in found or not {"img", "label"} <= set(found[name].column_names):
            raise ValueError(
                f"{location} has splits {dict(found.column_names)}; it needs train and test with "
                "columns img and label, as uoft-cs/cifar10."
            )
        splits[name] = _stack(found[name]["img"], found[name]["label"])
    return splits, tuple(found["train"].features["label"].names)


def _from_folder(location: str | None) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Read `train/CLASS/*.png` and `test/CLASS/*.png`."""
    root = _folder(location)
    for name in CIFAR10_SIZES:
        if not any(root.glob(f"{name}/*/*")):
            raise ValueError(f"{root / name} has no images; it wants CLASS/FILE.png.")
    found = load_dataset("imagefolder", data_dir=str(root), drop_labels=False)
    splits = {name: _stack(found[name]["image"], found[name]["label"]) for name in CIFAR10_SIZES}
    return splits, tuple(found["train"].features["label"].names)


def _from_binary(location: str | None) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Read `cifar-10-batches-bin`: a byte for the label, then red, green and blue row by row."""
    root = _folder(location)
    splits = {}
    for name, files in BINARY_FILES.items():
        missing = [file for file in files if not (root / file).is_file()]
        if missing:
            raise ValueError(
                f"{root} lacks {', '.join(missing)}; unpack cifar-10-binary.tar.gz there."
            )
        rows = np.concatenate([np.fromfile(root / file, dtype=np.uint8) for file in files])
        length = 1 + int(np.prod(CIFAR10_SHAPE))
        if len(rows) % length:
            raise ValueError(f"{root}: {', '.join(files)} are cut off; unpack them anew.")
        rows = torch.from_numpy(rows.reshape(-1, length))
        splits[name] = Images(rows[:, 1:].reshape(-1, *CIFAR10_SHAPE), rows[:, 0].long())
    return splits, CIFAR10_CLASSES


def _from_silhouettes(location: str | None) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Take the ten animals, whose three sets are fixed."""
    splits = {
        name: Images(split.images[:, None], split.labels)
        for name, split in load_silhouettes().items()
    }
    return splits, ANIMALS


def _folder(location: str | None) -> Path:
    if location is None or not Path(location).is_dir():
        raise ValueError(f"data_dir={location!r} is not a folder; unpack the data there first.")
    return Path(location)


def _stack(images: Iterable[Any], labels: Iterable[int]) -> Images:
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


SOURCES: dict[str, Callable[[str | None], tuple[dict[str, Images], tuple[str, ...]]]] = {
    "hub": _from_hub,
    "folder": _from_folder,
    "binary": _from_binary,
    "silhouettes": _from_silhouettes,
}
