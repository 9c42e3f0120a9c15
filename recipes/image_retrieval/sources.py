"""Where the images are: CUB, Cars, In-Shop and SOP in their own layouts, and icons of a package.

Classes of the training set do not occur in the test set. Labels are numbered from 0 in each.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .icons import load_icons
from .recall import BOTH, GALLERY, QUERY

__all__ = ["COUNTS", "ICONS", "SOURCES", "Counts", "Item", "Source", "hold_out", "load"]

ICONS = ("icons", "spare_icons")  # sources of drawings; all others are of photographs
HOLD_OUT_SEED = 20061  # of which training classes are held out
SUFFIXES = {".jpg", ".jpeg", ".png"}


class Counts(NamedTuple):
    """What a data set has: images and classes of the training set, of the test, and queries."""

    train_images: int
    train_classes: int
    test_images: int
    test_classes: int
    queries: int


# In-Shop's test set is 14,218 queries and 12,612 images of the gallery.
COUNTS: Mapping[str, Counts] = {
    "cub": Counts(5_864, 100, 5_924, 100, 5_924),
    "cars": Counts(8_054, 98, 8_131, 98, 8_131),
    "in_shop": Counts(25_882, 3_997, 26_830, 3_985, 14_218),
    "sop": Counts(59_551, 11_318, 60_502, 11_316, 60_502),
}


@dataclass(frozen=True)
class Item:
    """An image that is read when it is needed.

    Attributes:
        image: a file, or the pixels of a grey image, (height, width) uint8.
        label: of its class.
        role: `BOTH`, `QUERY` or `GALLERY`.
    """

    image: Path | np.ndarray
    label: int
    role: int = BOTH

    def read(self) -> Image.Image:
        """Return the image."""
        if isinstance(self.image, np.ndarray):
            return Image.fromarray(self.image)
        with Image.open(self.image) as file:
            return file.convert("RGB")


class Source(NamedTuple):
    """Images to train on, and images of other classes to find each other."""

    train: Sequence[Item]
    test: Sequence[Item]

    @property
    def counts(self) -> Counts:
        """Return how many there are."""
        return Counts(
            *(len(self.train), len({item.label for item in self.train})),
            *(len(self.test), len({item.label for item in self.test})),
            sum(item.role != GALLERY for item in self.test),
        )


def load(source: str, location: str | None = None, *, sizes: bool = True) -> Source:
    """Open a data set.

    Args:
        source: a key of `SOURCES`.
        location: its folder; none for icons.
        sizes: whether the numbers of images and classes must be the published ones.

    Raises:
        ValueError: there is no such source, files are missing, or the numbers are others.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r} is unknown; known sources: {', '.join(SOURCES)}.")
    if source not in ICONS and location is None:
        raise ValueError(f"source={source!r} needs data_dir, the folder of its files.")
    found = SOURCES[source](Path(location or ""))
    if sizes and source in COUNTS and found.counts != COUNTS[source]:
        raise ValueError(
            f"{location} has {found.counts}, not {COUNTS[source]}; complete the data, or pass "
            "--sizes false."
        )
    for name, items in found._asdict().items():
        files = [item.image for item in items if isinstance(item.image, Path)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(files)} images of the {name} set are missing, such as "
                f"{missing[0]}; unpack the archive's images there."
            )
    return found


def hold_out(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Split training images by class: those to train on, and those to choose by.

    The classes held out are the same in every run. All images of theirs are searched for by
    leave-one-out.

    Args:
        items: the training set.
        share: of its classes that are held out, from 0 up to below 1.

    Raises:
        ValueError: the share leaves no class, or holds out less than two.
    """
    classes = sorted({item.label for item in items})
    count = round(share * len(classes))
    if not 2 <= count <= len(classes) - 2:
        raise ValueError(
            f"validation_share={share} holds out {count} of {len(classes)} classes; hold out, and "
            "leave, two at least."
        )
    drawn = np.random.default_rng(HOLD_OUT_SEED).permutation(classes)
    held = set(drawn[:count].tolist())
    return (
        _renumber(item for item in items if item.label not in held),
        _renumber(item for item in items if item.label in held),
    )


def _renumber(items: Iterable[Item]) -> list[Item]:
    """Number the classes from 0, in the order of their old numbers."""
    kept = list(items)
    numbers = {old: new for new, old in enumerate(sorted({item.label for item in kept}))}
    return [replace(item, label=numbers[item.label]) for item in kept]


def _halves(items: Iterable[Item], train_classes: int) -> Source:
    """Train on the first classes, test on the rest."""
    kept = list(items)
    return Source(
        _renumber(item for item in kept if item.label < train_classes),
        _renumber(item for item in kept if item.label >= train_classes),
    )


def _lines(path: Path, fields: int) -> list[list[str]]:
    """Return the words of each line of a text file, of those lines that have `fields` words."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; data_dir is the folder of the unpacked archive.")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [words for words in lines if len(words) == fields]


def _cub(root: Path) -> Source:
    """`images/001.Black_footed_Albatross/*.jpg`: 100 classes train, the others test."""
    folder = root / "images"
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; data_dir is the folder CUB_200_2011.")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    images = (
        Item(path, label)
        for label, of_class in enumerate(folders)
        for path in sorted(of_class.iterdir())
        if path.suffix.lower() in SUFFIXES
    )
    return _halves(images, COUNTS["cub"].train_classes)


def _cars(root: Path) -> Source:
    """`cars_annos.mat` with `car_ims`, or the tables and folders of the copy on Kaggle."""
    annotations = root / "cars_annos.mat"
    if annotations.is_file():
        from scipy.io import loadmat  # noqa: PLC0415 -- of this source only

        rows = np.atleast_1d(loadmat(annotations, squeeze_me=True)["annotations"])
        images = [Item(root / str(row["relative_im_path"]), int(row["class"]) - 1) for row in rows]
        return _halves(images, COUNTS["cars"].train_classes)
    if not (root / "names.csv").is_file():
        raise ValueError(f"{root} has neither cars_annos.mat nor names.csv; put one copy there.")
    names = (root / "names.csv").read_text(encoding="utf-8").splitlines()
    images = []
    # The published split by class overrules that of the folders.
    for part in ("train", "test"):
        with (root / f"anno_{part}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                label = int(row[-1]) - 1
                folder = root / "car_data" / "car_data" / part / names[label].replace("/", "-")
                images.append(Item(folder / row[0], label))
    return _halves(images, COUNTS["cars"].train_classes)


def _in_shop(root: Path) -> Source:
    """`list_eval_partition.txt` says of each image its item, and train, query or gallery."""
    tables = (root / "Eval" / "list_eval_partition.txt", root / "list_eval_partition.txt")
    table = next((path for path in tables if path.is_file()), tables[0])
    folder = root / "Img" if (root / "Img").is_dir() else root
    roles = {"train": BOTH, "query": QUERY, "gallery": GALLERY}
    sets: dict[str, list[Item]] = {"train": [], "test": []}
    for name, product, status in _lines(table, 3):
        if status in roles:  # the headline is not
            item = Item(folder / name, int(product.rpartition("_")[2]), roles[status])
            sets["train" if status == "train" else "test"].append(item)
    return Source(*map(_renumber, sets.values()))


def _sop(root: Path) -> Source:
    """`Ebay_train.txt` and `Ebay_test.txt`: number, class, kind of product, path."""
    sets = [
        [
            Item(root / path, int(label))
            for _, label, _, path in _lines(root / f"Ebay_{part}.txt", 4)
            if label.isdigit()  # the headline's is not
        ]
        for part in ("train", "test")
    ]
    return Source(*map(_renumber, sets))


def _icons(_: Path, train: str = "train", test: str = "test") -> Source:
    """Concepts of icon fonts."""
    icons = load_icons(spare="spare" in (train, test))
    return Source(
        *(
            _renumber(
                Item(image, int(label))
                for image, label in zip(icons.images, icons.labels, strict=True)
                if icons.parts[label] == part
            )
            for part in (train, test)
        )
    )


def _spare_icons(root: Path) -> Source:
    """Concepts with few drawings, to begin with; tested on those that others train on."""
    return _icons(root, "spare", "train")


SOURCES: Mapping[str, Callable[[Path], Source]] = {
    **{"cub": _cub, "cars": _cars, "in_shop": _in_shop, "sop": _sop},
    **dict(zip(ICONS, (_icons, _spare_icons), strict=True)),
}
