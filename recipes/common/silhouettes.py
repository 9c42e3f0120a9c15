"""Ten animals as 28x28 silhouettes: small real images that install with a package.

    splits = load_silhouettes()
    splits["train"].images, splits["train"].labels    # (6000, 28, 28) uint8, (6000,) int64

The package animal-shape-mnist 0.39 (Sina Mohammadi, MIT) holds 10,000 grey images, 1,000 each of
ten animals: outlines filled with white, but zebras keep their stripes. Which photos they were cut
from is not said. The package is not imported, as it asks for TensorFlow; its two files are read as
arrays.

Of images that are equal pixel by pixel, one is kept, before anything is split; 9,716 remain. They
are split once, by class in proportion and with a seed of their own, so every run of every recipe
sees the same three sets, each in the same random order:

    train 6,000, validation 1,500, test 2,216
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .array_pickles import read_array

__all__ = ["CLASSES", "SIZES", "Split", "load_silhouettes", "to_pixels"]

CLASSES = (
    *("bear", "bird", "cat", "cow", "dog"),
    *("elephant", "giraffe", "horse", "sheep", "zebra"),
)
SIZES: Mapping[str, int] = {"train": 6000, "validation": 1500, "test": 2216}
_PACKAGE = "animal_shape_mnist"
_DATA = Path("data", "Animal Shape")
_SPLIT_SEED = 20060


class Split(NamedTuple):
    """Images (n, 28, 28) uint8, 0 is background; labels (n,) int64, an index of `CLASSES`."""

    images: Tensor
    labels: Tensor


def load_silhouettes() -> dict[str, Split]:
    """Return the splits train, validation and test.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: its files are not those of version 0.39.
    """
    # Finding a package does not import it.
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "The silhouettes are not installed: pip install animal-shape-mnist==0.39"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / _DATA
    images = read_array(folder / "animal_data_version_3.gz")
    labels = read_array(folder / "animal_label_version_3.gz")
    if images.shape != (10000, 28, 28) or labels.shape != (10000,):
        raise ValueError(
            f"{folder} holds images {images.shape} and labels {labels.shape}, not (10000, 28, 28) "
            "and (10000,); install animal-shape-mnist==0.39."
        )
    first: dict[bytes, int] = {}
    for number, image in enumerate(images):
        first.setdefault(image.tobytes(), number)
    kept = list(first.values())
    return _split(images[kept], labels[kept])


def to_pixels(images: Tensor) -> Tensor:
    """Return images (n, 28, 28) uint8 as pixels (n, 1, 28, 28) float32 in [-1, 1]."""
    return images[:, None].float() / 127.5 - 1


def _split(images: np.ndarray, labels: np.ndarray) -> dict[str, Split]:
    """Deal every class out in proportion, the rounding going to the largest remainders."""
    total = sum(SIZES.values())
    if len(images) != total:
        raise ValueError(
            f"the package holds {len(images)} different images, not {total}; "
            "install animal-shape-mnist==0.39."
        )
    draw = np.random.default_rng(_SPLIT_SEED)
    order = draw.permutation(total)
    # Sorted by class and shuffled within, each place in the line is a quantile of its class.
    line = order[np.argsort(labels[order], kind="stable")]
    sets = {}
    for name in ("test", "validation"):
        taken = np.linspace(0, len(line), SIZES[name], endpoint=False).astype(int)
        sets[name] = line[taken]
        line = np.delete(line, taken)
    sets["train"] = line
    # In no order, so that who takes the first few of a set has all classes.
    chosen = {name: draw.permutation(sets[name]) for name in SIZES}
    return {
        name: Split(torch.from_numpy(images[own]), torch.from_numpy(labels[own]))
        for name, own in chosen.items()
    }
