"""Where labelled photographs come from: class folders, a data set of the Hub, WebDataset shards.

    photos = SOURCES["folder"]("imagenet")        # {"train": ..., "validation": ...}
    photos["train"].read(0), photos["train"].label(0), photos["train"].names

All of them are read by number, so shuffling, several processes, an epoch and a resumed run mean the
same for each. What cannot be trained on is found here, before the first step.
"""

import importlib.util
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["SOURCES", "ClassFolders", "HubRows", "Photos", "Shards", "check_labels"]

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"}
# What data sets call the split that models are evaluated on.
EVALUATION = ("validation", "val", "valid", "test")


class Photos(ABC):
    """Labelled images in files of any kind.

    Attributes:
        names: of the classes; a label is an index of them. Numbers where nothing names them.
    """

    names: Sequence[str]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Return an image as it is in its file."""

    @abstractmethod
    def label(self, number: int) -> int:
        """Return an image's label."""

    @abstractmethod
    def where(self, number: int) -> str:
        """Say where an image is, for messages."""

    def labels(self) -> np.ndarray:
        """Return all labels, (n,) int64."""
        return np.array([self.label(number) for number in range(len(self))], dtype=np.int64)


class ClassFolders(Photos):
    """Images in a folder a class, as in `train/n01440764/n01440764_10026.JPEG`.

    Args:
        folder: that holds the class folders.
        names: of the classes, in the order of their labels. Default: the folders' names, sorted.

    Raises:
        ValueError: there is no class folder, one is empty, or they are not those of `names`.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [path.name for path in folders]
        if not found:
            raise ValueError(f"{folder} holds no class folder; put images into {folder}/CLASS/.")
        self.names = found if names is None else list(names)
        if missing := sorted(set(self.names) - set(found)):
            raise ValueError(f"{folder} lacks {_list(missing)}, which the training set has.")
        if unknown := sorted(set(found) - set(self.names)):
            raise ValueError(f"{folder} has {_list(unknown)}, which the training set lacks.")
        with ThreadPoolExecutor(16) as pool:
            files = list(pool.map(_image_files, folders))
        if empty := [path.name for path, inside in zip(folders, files, strict=True) if not inside]:
            kinds = " ".join(sorted(IMAGES))
            raise ValueError(f"{folder}: no image ({kinds}) in {_list(empty)}; add or remove them.")
        label = {name: number for number, name in enumerate(self.names)}
        self._files = [file for inside in files for file in inside]
        self._labels = np.repeat([label[name] for name in found], [len(f) for f in files])

    def __len__(self) -> int:
        return len(self._files)

    def read(self, number: int) -> bytes:
        """Return an image as it is in its file."""
        return self._files[number].read_bytes()

    def label(self, number: int) -> int:
        """Return an image's label."""
        return int(self._labels[number])

    def labels(self) -> np.ndarray:
        """Return all labels, (n,) int64."""
        return self._labels.astype(np.int64)

    def where(self, number: int) -> str:
        """Return the image's path."""
        return str(self._files[number])


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class HubRows(Photos):
    """Rows with an image and a label, as `datasets` loads them.

    Args:
        rows: a `datasets.Dataset` with the columns `image` and `label`, or `img` and `label`.

    Raises:
        ValueError: a column is missing.
    """

    def __init__(self, rows: Any) -> None:
        from datasets import Image  # noqa: PLC0415 -- of this source only

        column = next((name for name in ("image", "img") if name in rows.column_names), None)
        if column is None or "label" not in rows.column_names:
            raise ValueError(
                f"the data set has the columns {', '.join(rows.column_names)}; image and label are "
                "needed, rename them with datasets."
            )
        # As bytes: decoding is done where an unreadable image can be passed over.
        self._rows = rows.cast_column(column, Image(decode=False))
        self._column = column
        self._labels = np.asarray(rows["label"][:], dtype=np.int64)
        feature = rows.features["label"]
        known = getattr(feature, "names", None)
        self.names = known or [str(number) for number in range(int(self._labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, number: int) -> bytes:
        """Return an image as it is in its file."""
        image: Mapping[str, Any] = self._rows[number][self._column]
        content: bytes | None = image["bytes"]
        return Path(image["path"]).read_bytes() if content is None else content

    def label(self, number: int) -> int:
        """Return an image's label."""
        return int(self._labels[number])

    def labels(self) -> np.ndarray:
        """Return all labels, (n,) int64."""
        return self._labels

    def where(self, number: int) -> str:
        """Return the row's number."""
        return f"row {number}"


class _Member(NamedTuple):
    shard: int
    offset: int
    size: int
    label: int


class Shards(Photos):
    """Images in tar files in WebDataset's layout: `KEY.jpg` beside `KEY.cls`, a number as text.

    The tar files' headers are read once, so that every image can then be read by its place.

    Args:
        files: the tar files, uncompressed.
        names: of the classes. Default: their numbers.

    Raises:
        ValueError: there is no file, or an image without a label.
    """

    def __init__(self, files: Sequence[Path], names: Sequence[str] | None = None) -> None:
        if not files:
            raise ValueError("there is no shard; name tar files, such as imagenet1k-train-*.tar.")
        self._files = list(files)
        with ThreadPoolExecutor(16) as pool:
            indices = list(pool.map(_index_shard, range(len(files)), files))
        # Arrays, as workers that are forked would copy a list of tuples bit by bit.
        self._members = np.concatenate(indices)
        labels = self._members[:, _Member._fields.index("label")]
        self.names = names or [str(number) for number in range(int(labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self._members)

    def read(self, number: int) -> bytes:
        """Return an image as it is in its shard."""
        member = _Member(*self._members[number])
        with self._files[member.shard].open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def label(self, number: int) -> int:
        """Return an image's label."""
        return _Member(*map(int, self._members[number])).label

    def labels(self) -> np.ndarray:
        """Return all labels, (n,) int64."""
        return self._members[:, _Member._fields.index("label")]

    def where(self, number: int) -> str:
        """Return the shard, and the place in it."""
        member = _Member(*self._members[number])
        return f"{self._files[member.shard]} at byte {member.offset}"


def _index_shard(shard: int, path: Path) -> np.ndarray:
    """Return place and label of every image of a tar file, (n, 4) int64."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            key, _, kind = name.partition(".")
            key = f"{folder}/{key}"
            if f".{kind.lower()}" in IMAGES:
                images[key] = (member.offset_data, member.size)
            elif kind.lower() == "cls":
                content = tar.extractfile(member)
                labels[key] = int(content.read()) if content is not None else -1
    if not images:
        raise ValueError(f"{path} holds no image; a shard holds KEY.jpg and KEY.cls.")
    if without := sorted(images.keys() - labels.keys()):
        raise ValueError(f"{path}: no KEY.cls beside the image of {_list(without)}.")
    rows = [_Member(shard, *place, labels[key]) for key, place in images.items()]
    return np.array(rows, dtype=np.int64)


def _load_folder(location: str) -> dict[str, Photos]:
    """Read `train` and the evaluation split below a folder."""
    folders = {"train": _needed(location, ("train",)), "validation": _needed(location, EVALUATION)}
    train = ClassFolders(folders["train"])
    return {"train": train, "validation": ClassFolders(folders["validation"], train.names)}


def _needed(location: str, names: Sequence[str]) -> Path:
    folder = Path(location)
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise ValueError(f"{folder} has no folder {' or '.join(names)}; see the recipe's README.")


def _load_hub(location: str) -> dict[str, Photos]:
    """Load `ID[:CONFIGURATION[:REVISION]]`."""
    if importlib.util.find_spec("datasets") is None:
        raise ModuleNotFoundError("--source hub needs datasets: pip install 'hf-adamp[recipes]'")
    from datasets import load_dataset  # noqa: PLC0415 -- of this source only

    name, configuration, revision = [*location.split(":"), "", ""][:3]
    splits = load_dataset(name, configuration or None, revision=revision or None)
    evaluation = next((split for split in EVALUATION if split in splits), None)
    if "train" not in splits or evaluation is None:
        raise ValueError(
            f"{location} has the splits {', '.join(splits)}; train and validation are needed."
        )
    return {"train": HubRows(splits["train"]), "validation": HubRows(splits[evaluation])}


def _load_shards(location: str) -> dict[str, Photos]:
    """Read `*train*.tar` and the evaluation split's tar files in a folder."""
    files = sorted(Path(location).glob("*.tar"))
    train = [file for file in files if "train" in file.name]
    evaluation = [
        file for file in files if file not in train and any(n in file.name for n in EVALUATION)
    ]
    if not (train and evaluation):
        raise ValueError(
            f"{location} holds {len(train)} tar files with train in their name and "
            f"{len(evaluation)} with {', '.join(EVALUATION)}; both are needed."
        )
    return {"train": Shards(train), "validation": Shards(evaluation)}


SOURCES: Mapping[str, Callable[[str], dict[str, Photos]]] = {
    "folder": _load_folder,
    "hub": _load_hub,
    "shards": _load_shards,
}


def check_labels(photos: Mapping[str, Photos], num_labels: int | None) -> int:
    """Return the number of labels, after a look at all of them.

    Args:
        photos: the splits.
        num_labels: how many there should be; None takes those of the training set.

    Raises:
        ValueError: a label is out of range, or a class has no training image.
    """
    expected = len(photos["train"].names) if num_labels is None else num_labels
    for split, images in photos.items():
        labels = images.labels()
        wrong = np.flatnonzero((labels < 0) | (labels >= expected))
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"{split}: {len(wrong)} labels are not in 0 to {expected - 1}; the first is "
                f"{labels[first]}, of {images.where(first)}."
            )
        absent = np.flatnonzero(np.bincount(labels, minlength=expected) == 0)
        if split == "train" and len(absent):
            raise ValueError(f"train has no image of label {_list([*map(str, absent)])}.")
    return expected
