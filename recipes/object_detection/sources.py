"""Where the images and boxes are: COCO 2017 from its archives or the Hub, and rendered scenes.

Whatever the source, boxes are left, top, right and bottom in pixels, and classes are numbered from
0 in the order of COCO's category numbers.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, load_dataset
from PIL import Image

from .scenes import CLASSES as SCENE_CLASSES
from .scenes import render

__all__ = ["COCO_IMAGES", "SOURCES", "Annotated", "Source", "box_convention", "load"]

# https://cocodataset.org: images of each split, categories.
COCO_IMAGES = {"train": 118_287, "validation": 5_000}
COCO_CLASSES = 80
COCO_FOLDERS = {"train": "train2017", "validation": "val2017"}
ANNOTATIONS_ARCHIVE = "annotations_trainval2017.zip"
# A copy on disk may be named otherwise than the Hub's.
HUB_SPLITS = {"train": ("train",), "validation": ("val", "validation")}
# Of each split of rendered scenes: how many, and the first one's seed.
SCENES = {"train": (512, 0), "validation": (128, 1_000_000), "test": (256, 2_000_000)}
SLACK = 1.5  # pixels by which an annotated box may reach over the edge of its image


@dataclass(frozen=True)
class Annotated:
    """An image that is read when it is needed, and what is on it.

    Attributes:
        number: of the image; unique within its split.
        size: width and height in pixels.
        read: returns the image.
        boxes: left, top, right, bottom in pixels, float32 (n, 4).
        classes: int64 (n,).
        areas: of the objects themselves, by which COCO calls them small or large, (n,).
        crowds: whether a box is around a crowd, which is neither trained on nor scored, (n,).
    """

    number: int
    size: tuple[int, int]
    read: Callable[[], Image.Image]
    boxes: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray


class Source(NamedTuple):
    """The splits, and what the classes are called."""

    splits: dict[str, Sequence[Annotated]]
    names: tuple[str, ...]


def load(source: str, location: str | None, *, sizes: bool = True, scene_size: int = 96) -> Source:
    """Open a data set.

    Args:
        source: a key of `SOURCES`.
        location: a folder with COCO's archives, unpacked or not; for "hub" an id or a copy of it;
            none for scenes.
        sizes: whether the numbers of images and classes must be the published ones.
        scene_size: sides of rendered scenes, in pixels. Default: 96.

    Raises:
        ValueError: there is no such source, files are missing, or the numbers are others.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r} is unknown; known sources: {', '.join(SOURCES)}.")
    if source == "scenes":
        return _scenes(scene_size)
    found = SOURCES[source](location)
    counts = {name: len(images) for name, images in found.splits.items()}
    if sizes and (counts != COCO_IMAGES or len(found.names) != COCO_CLASSES):
        raise ValueError(
            f"{location} has {counts} images and {len(found.names)} classes; COCO 2017 has "
            f"{COCO_IMAGES} and {COCO_CLASSES}. Complete the data, or pass --sizes false."
        )
    return found


class Archive:
    """Files of a folder, or of a zip archive beside it that was not unpacked.

    Args:
        root: where both may be.
        folder: the folder's name, which archive and paths have, too.
        archive: the archive's name. Default: None, the folder's.
    """

    def __init__(self, root: Path, folder: str, archive: str | None = None) -> None:
        self.folder, self.path = root / folder, root / (archive or f"{folder}.zip")
        self._opened: zipfile.ZipFile | None = None
        if not self.folder.is_dir() and not self.path.is_file():
            raise ValueError(f"{root} has neither {folder} nor {self.path.name}; put one there.")

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        if self.folder.is_dir():
            return (self.folder / name).read_bytes()
        if self._opened is None:
            self._opened = zipfile.ZipFile(self.path)
        return self._opened.read(f"{self.folder.name}/{name}")

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the archive for itself: two may not share a place in a file.
        return self.__dict__ | {"_opened": None}


@dataclass(frozen=True)
class ReadFile:
    """Reads an image out of an archive; unlike a closure, workers can be handed it."""

    archive: Archive
    name: str

    def __call__(self) -> Image.Image:
        """Return the image."""
        return Image.open(io.BytesIO(self.archive.read(self.name))).convert("RGB")


def coco(location: str | None) -> Source:
    """COCO's own files: train2017, val2017 and annotations, as folders or as archives."""
    root = Path(location or "")
    annotations = Archive(root, "annotations", ANNOTATIONS_ARCHIVE)
    splits: dict[str, Sequence[Annotated]] = {}
    names: tuple[str, ...] = ()
    for split, folder in COCO_FOLDERS.items():
        archive = Archive(root, folder)
        table = json.loads(annotations.read(f"instances_{folder}.json"))
        categories = sorted(table["categories"], key=lambda category: category["id"])
        names = tuple(category["name"] for category in categories)
        numbers = {category["id"]: number for number, category in enumerate(categories)}
        of_image: dict[int, list[dict[str, Any]]] = {}
        for row in table["annotations"]:
            of_image.setdefault(row["image_id"], []).append(row)
        splits[split] = [
            _annotated(
                image["id"],
                (image["width"], image["height"]),
                ReadFile(archive, image["file_name"]),
                of_image.get(image["id"], []),
                numbers,
            )
            for image in table["images"]
        ]
    return Source(splits, names)


def _annotated(
    number: int,
    size: tuple[int, int],
    read: Callable[[], Image.Image],
    rows: Sequence[Mapping[str, Any]],
    numbers: Mapping[int, int],
) -> Annotated:
    """Turn COCO's rows, whose boxes are left, top, width and height, into ours."""
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Annotated(
        number,
        size,
        read,
        boxes,
        np.array([numbers[row["category_id"]] for row in rows], dtype=np.int64),
        np.array([row["area"] for row in rows], dtype=np.float32),
        np.array([row.get("iscrowd", 0) for row in rows], dtype=bool),
    )


def box_convention(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """Tell which of two conventions boxes follow, from the boxes of many images.

    Args:
        boxes: four numbers of each box, (n, 4).
        sizes: width and height of each box's image, (n, 2).

    Returns:
        "corners" (left, top, right, bottom) or "extent" (left, top, width, height).

    Raises:
        ValueError: both are possible, or neither is.
    """
    starts, ends = boxes[:, :2], boxes[:, 2:]
    corners = bool((ends >= starts).all() and (ends <= sizes + SLACK).all())
    extent = bool((starts + ends <= sizes + SLACK).all())
    if corners == extent:
        raise ValueError(
            f"{len(boxes)} boxes fit {'both' if corners else 'neither'} of left, top, right, "
            "bottom and left, top, width, height; check the data set's columns."
        )
    return "corners" if corners else "extent"


@dataclass(frozen=True)
class ReadRow:
    """Reads an image out of a data set of the Hub."""

    rows: Any
    place: int

    def __call__(self) -> Image.Image:
        """Return the image."""
        return self.rows[self.place]["image"].convert("RGB")


def hub(location: str | None) -> Source:
    """A copy with columns image, image_id, width, height and objects (bbox, category, area)."""
    found = load_dataset(location or "detection-datasets/coco")
    splits: dict[str, Sequence[Annotated]] = {}
    names: tuple[str, ...] = ()
    for split, known in HUB_SPLITS.items():
        name = next((name for name in known if name in found), None)
        if name is None:
            raise ValueError(f"{location} has splits {', '.join(found)}, but no {known[0]}.")
        rows = found[name]
        columns = ["image_id", "width", "height", "objects"]
        lacking = {"image", *columns} - set(rows.column_names)
        if lacking:
            raise ValueError(f"{location}: {name} lacks the columns {', '.join(sorted(lacking))}.")
        names = _category_names(rows) or names
        splits[split] = list(_of_rows(rows, list(rows.select_columns(columns))))
    return Source(splits, names)


def _category_names(rows: Any) -> tuple[str, ...]:
    """Return what the categories of `objects` are called, in either way of nesting them."""
    objects = rows.features["objects"]
    labels = getattr(objects, "feature", objects)["category"]
    labels = getattr(labels, "feature", labels)
    return tuple(labels.names) if isinstance(labels, ClassLabel) else ()


def _of_rows(rows: Any, tables: Sequence[Mapping[str, Any]]) -> Iterator[Annotated]:
    """Yield the images of a split, their boxes turned into corners where they are not."""
    boxes = [np.array(row["objects"]["bbox"], np.float32).reshape(-1, 4) for row in tables]
    sizes = [(row["width"], row["height"]) for row in tables]
    sides = [np.tile(size, (len(of), 1)) for size, of in zip(sizes, boxes, strict=True)]
    if box_convention(np.concatenate(boxes), np.concatenate(sides)) == "extent":
        for of_image in boxes:
            of_image[:, 2:] += of_image[:, :2]
    for place, row in enumerate(tables):
        yield Annotated(
            row["image_id"],
            sizes[place],
            ReadRow(rows, place),
            boxes[place],
            np.array(row["objects"]["category"], np.int64),
            np.array(row["objects"]["area"], np.float32),
            # The Hub's copy does not tell which boxes are around crowds.
            np.zeros(len(boxes[place]), bool),
        )


@dataclass(frozen=True)
class Rendered:
    """An image that is there already."""

    pixels: np.ndarray

    def __call__(self) -> Image.Image:
        """Return the image."""
        return Image.fromarray(self.pixels)


@cache
def _scenes(size: int) -> Source:
    """Render all scenes, a few milliseconds each."""
    splits: dict[str, Sequence[Annotated]] = {}
    for split, (count, first) in SCENES.items():
        found = []
        for seed in range(first, first + count):
            image, boxes, classes = render(seed, size)
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
            crowds = np.zeros(len(boxes), bool)
            found.append(
                Annotated(seed, (size, size), Rendered(image), boxes, classes, areas, crowds)
            )
        splits[split] = found
    return Source(splits, SCENE_CLASSES)


SOURCES: Mapping[str, Callable[[str | None], Source]] = {
    "coco": coco,
    "hub": hub,
    "scenes": lambda location: _scenes(96),
}
