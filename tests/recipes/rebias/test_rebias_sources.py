"""The loaders, on folders made in the real layouts, in small; counts and broken copies."""

import csv
import gzip
import struct

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from recipes.rebias import sources
from recipes.rebias.sources import (
    CLASSES,
    MNIST_COUNTS,
    SYNSETS,
    Photos,
    load_imagenet9,
    load_imagenet_a,
    load_mnist,
    read_clusters,
)

COUNTS = {"train": (8,) * 10, "test": (3,) * 10}


def digits(split):
    """Images whose every pixel tells their number, and labels in random order."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), COUNTS[split]))
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    return images, labels.astype(np.uint8)


def write_idx(root, *, packed):
    """The four files of MNIST's archives."""
    root.mkdir()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = digits(split)
        for name, header, values in (
            ("images-idx3", struct.pack(">IIII", 2051, len(images), 28, 28), images),
            ("labels-idx1", struct.pack(">II", 2049, len(labels)), labels),
        ):
            raw = header + values.tobytes()
            path = root / f"{prefix}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
            else:
                path.write_bytes(raw)
    return root


def write_hub(root):
    """Parquet files as of ylecun/mnist."""
    features = Features(image=ImageFeature(), label=ClassLabel(names=[str(d) for d in range(10)]))
    for split in COUNTS:
        images, labels = digits(split)
        rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        folder = root / "mnist"
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    return root


@pytest.fixture
def small_counts(monkeypatch, tmp_path):
    """The published counts in small."""
    monkeypatch.setattr(sources, "MNIST_COUNTS", COUNTS)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_mnist_counts_are_the_published_totals():
    assert {split: sum(counts) for split, counts in MNIST_COUNTS.items()} == {
        "train": 60000,
        "test": 10000,
    }


@pytest.mark.parametrize("layout", ["idx", "idx packed", "hub"])
def test_load_mnist_reads_every_layout(small_counts, tmp_path, layout):
    if layout == "hub":
        root = write_hub(tmp_path / "data")
    else:
        root = write_idx(tmp_path / "data", packed="packed" in layout)
    splits = load_mnist(layout.split()[0], str(root))
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 60,
        "validation": 20,
        "test": 30,
    }
    assert (np.bincount(splits["validation"].labels) == 2).all()
    images, labels = digits("train")
    for name in ("train", "validation"):
        numbers = splits[name].images[:, 0, 0]
        assert (splits[name].labels == labels[numbers]).all()
        assert (splits[name].images == images[numbers]).all()
    kept = {*splits["train"].images[:, 0, 0], *splits["validation"].images[:, 0, 0]}
    assert len(kept) == 80
    assert (splits["test"].labels == digits("test")[1]).all()


def test_load_mnist_refuses_other_counts(tmp_path):
    root = write_idx(tmp_path / "data", packed=False)
    with pytest.raises(ValueError, match="5923, 6742"):
        load_mnist("idx", str(root))
    assert len(load_mnist("idx", str(root), sizes=False)["test"].labels) == 30


def test_load_mnist_names_a_missing_or_broken_file(tmp_path):
    root = write_idx(tmp_path / "data", packed=False)
    images = root / "t10k-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cut off"):
        load_mnist("idx", str(root), sizes=False)
    images.write_bytes(b"\0" * 16)
    with pytest.raises(ValueError, match="begins with 0, not 2051"):
        load_mnist("idx", str(root), sizes=False)
    images.unlink()
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is missing"):
        load_mnist("idx", str(root), sizes=False)
    with pytest.raises(ValueError, match="source='web' is unknown; known: hub, idx, package"):
        load_mnist("web", None)


def test_load_mnist_package_has_five_hundred_of_each_digit():
    splits = load_mnist("package", None)
    for name, count in (("train", 350), ("validation", 50), ("test", 100)):
        assert (np.bincount(splits[name].labels) == count).all()
    together = np.concatenate([split.images for split in splits.values()]).reshape(5000, -1)
    assert len(np.unique(together, axis=0)) == 5000


def write_photos(folder, count, *, name="photo_{}.JPEG"):
    """`count` photos in each of the 42 synsets, and a synset that is none of them."""
    number = 0
    for synset in [*(s for synsets in SYNSETS.values() for s in synsets), "n99999999"]:
        (folder / synset).mkdir(parents=True)
        for _ in range(count):
            number += 1
            image = Image.new("RGB", (40, 30), (number % 256, 0, 0))
            image.save(folder / synset / name.format(number))


def test_synsets_are_those_of_the_published_subset():
    synsets = [synset for of_class in SYNSETS.values() for synset in of_class]
    assert tuple(SYNSETS) == CLASSES
    assert len(set(synsets)) == len(synsets) == 42


def test_load_imagenet9_finds_nine_classes_and_ignores_others(tmp_path):
    write_photos(tmp_path / "train", 2)
    write_photos(tmp_path / "val", 1)
    splits = load_imagenet9(str(tmp_path), sizes=False)
    assert (len(splits["train"]), len(splits["val"])) == (84, 42)
    for path, label in splits["train"]:
        assert path.parent.name in SYNSETS[CLASSES[label]]
    with pytest.raises(ValueError, match="each synset should have 700 to 1300"):
        load_imagenet9(str(tmp_path))


def test_load_imagenet9_counts_fifty_of_each_synset_in_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TRAIN_LIMITS", (1, 1))
    monkeypatch.setattr(sources, "VALIDATION_IMAGES_A_SYNSET", 2)
    write_photos(tmp_path / "train", 1)
    write_photos(tmp_path / "val", 2)
    assert len(load_imagenet9(str(tmp_path))["val"]) == 84
    next((tmp_path / "val" / "n01980166").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"val has {'n01980166': 1} images"):
        load_imagenet9(str(tmp_path))


def test_load_imagenet_a_counts_what_is_published(tmp_path):
    write_photos(tmp_path, 1, name="0.{}_dog _ fox_0.9.jpg")
    assert len(load_imagenet_a(str(tmp_path), sizes=False)) == 42
    with pytest.raises(ValueError, match="has 42 images of the nine classes, not 617"):
        load_imagenet_a(str(tmp_path))


def test_read_clusters_goes_by_the_image_number(tmp_path):
    write_photos(tmp_path / "train", 1)
    write_photos(tmp_path / "val", 1, name="ILSVRC2012_val_{:08d}.JPEG")
    photos = load_imagenet9(str(tmp_path), sizes=False)["val"]
    table = tmp_path / "9class_imagenet_val.csv"
    rows = [
        [f"{p.path.parent.name}/{p.path.name}", CLASSES[p.label], number, number % 9, 8]
        for number, p in enumerate(photos)
    ]
    header = ["path", "category", "cluster1", "cluster2", "cluster3"]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([header, *reversed(rows)])
    clusters = read_clusters(str(table), photos)
    assert clusters.tolist() == [[n, n % 9, 8] for n in range(42)]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows[:-1]])
    with pytest.raises(ValueError, match="lacks 1 of 42 images"):
        read_clusters(str(table), photos)
    with pytest.raises(ValueError, match="is not a file; it comes with clovaai/rebias"):
        read_clusters(str(tmp_path / "none.csv"), photos)


def test_photos_are_pixels_of_one_size(tmp_path):
    write_photos(tmp_path / "train", 1)
    write_photos(tmp_path / "val", 1)
    photos = load_imagenet9(str(tmp_path), sizes=False)["train"]
    for augment in (True, False):
        dataset = Photos(photos, augment=augment, size=16)
        pixels, label = dataset[3]
        assert len(dataset) == 42
        assert pixels.shape == (3, 16, 16)
        assert label == photos[3].label
