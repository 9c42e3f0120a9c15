"""The loaders: CIFAR-10 in its three layouts, in small and at its real size."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image

from recipes.adversarial_training import sources
from recipes.adversarial_training.batches import Collator, ImageDataset
from recipes.adversarial_training.sources import Images
from tests.recipes.adversarial_training.conftest import draw, write_binary, write_folder


def test_binary_files_are_read_in_order(binary):
    splits, names = sources.SOURCES["binary"](str(binary))
    assert names[3] == "cat"
    assert {n: tuple(s.pixels.shape) for n, s in splits.items()} == {
        "train": (50, 3, 32, 32),
        "test": (10, 3, 32, 32),
    }
    assert splits["train"].labels.tolist() == [*range(10)] * 5
    # The second file's fourth image.
    assert (splits["train"].pixels[13].permute(1, 2, 0).numpy() == draw(3, 100)).all()


def test_folder_takes_classes_from_names(tmp_path):
    write_folder(tmp_path, per_class={"train": 3, "test": 2})
    found = sources.load("folder", str(tmp_path), validation=10, sizes=False)
    assert found.names == sources.CIFAR10_CLASSES
    assert {n: len(s.labels) for n, s in found.splits.items()} == {
        "train": 20,
        "test": 20,
        "validation": 10,
    }
    test = found.splits["test"]
    assert (test.pixels[5].permute(1, 2, 0).numpy() == draw(2, 1)).all()
    assert test.labels[5] == 2


def test_hub_reads_parquet(tmp_path):
    kinds = ClassLabel(names=list(sources.CIFAR10_CLASSES))
    features = Features({"img": Image(), "label": kinds})
    for split, count in (("train", 30), ("test", 10)):
        rows = {
            "img": [draw(number % 10, number) for number in range(count)],
            "label": [number % 10 for number in range(count)],
        }
        (tmp_path / "plain_text").mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet"
        )
    found = sources.load("hub", str(tmp_path), validation=10, sizes=False)
    assert found.names == sources.CIFAR10_CLASSES
    assert found.splits["test"].labels.tolist() == [*range(10)]
    assert (found.splits["test"].pixels[7].permute(1, 2, 0).numpy() == draw(7, 7)).all()


def test_hub_without_the_columns_is_refused(tmp_path):
    Dataset.from_dict({"image": [1], "label": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="columns img and label"):
        sources.load("hub", str(tmp_path), validation=1)


def test_full_size_is_asserted(tmp_path):
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    row = np.zeros((10_000, 3073), dtype=np.uint8)
    row[:, 0] = np.arange(10_000) % 10
    for name in (*sources.BINARY_FILES["train"], *sources.BINARY_FILES["test"]):
        row.tofile(root / name)
    found = sources.load("binary", str(root), validation=1000)
    assert len(found.splits["train"].labels) == 49_000
    assert torch.bincount(found.splits["validation"].labels).tolist() == [100] * 10
    row[0, 0] = 1
    row.tofile(root / "data_batch_3.bin")
    with pytest.raises(ValueError, match=r"train has \[4999, 5001.*not 5,000 of each of ten"):
        sources.load("binary", str(root), validation=1000)


def test_validation_is_the_same_each_time_and_apart_from_training(binary):
    first, second = (
        sources.load("binary", str(binary), validation=20, sizes=False) for _ in range(2)
    )
    assert torch.equal(first.splits["validation"].pixels, second.splits["validation"].pixels)
    assert torch.bincount(first.splits["validation"].labels).tolist() == [2] * 10
    both = torch.cat([first.splits[n].pixels for n in ("train", "validation")])
    assert len(both.flatten(1).unique(dim=0)) == 50


def test_silhouettes_have_sets_of_their_own():
    found = sources.load("silhouettes", None, validation=1)
    assert {n: tuple(s.pixels.shape) for n, s in found.splits.items()} == {
        "train": (6000, 1, 28, 28),
        "validation": (1500, 1, 28, 28),
        "test": (2216, 1, 28, 28),
    }


@pytest.mark.parametrize(
    ("source", "location", "message"),
    [
        ("cifar", None, "source='cifar' is unknown; known sources: hub, folder, binary"),
        ("folder", None, "data_dir=None is not a folder; unpack the data there first"),
        ("folder", ".", "train has no images; it wants CLASS/FILE.png"),
        ("binary", ".", "lacks data_batch_1.bin.*unpack cifar-10-binary.tar.gz there"),
    ],
)
def test_what_is_no_data_set_is_refused(source, location, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        sources.load(source, location, validation=1)


def test_cut_off_binary_is_refused(tmp_path):
    write_binary(tmp_path, per_class=1)
    with (tmp_path / "test_batch.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"test_batch\.bin are cut off"):
        sources.load("binary", str(tmp_path), validation=1, sizes=False)


def test_first_takes_every_class_alike(binary):
    images = sources.load("binary", str(binary), validation=10, sizes=False).splits["train"]
    few = sources.first(images, 20)
    assert torch.bincount(few.labels).tolist() == [2] * 10
    assert torch.equal(sources.first(images, 10).pixels, few.pixels[:10])
    assert sources.first(images, None) is images
    with pytest.raises(ValueError, match="41 images are wanted of 40"):
        sources.first(images, 41)


@pytest.mark.parametrize("count", [0, 50])
def test_validation_must_leave_something(binary, count):
    with pytest.raises(ValueError, match=f"validation_images={count} must be from 1 to 49"):
        sources.load("binary", str(binary), validation=count, sizes=False)


def test_batches_are_pixels_from_0_to_1_and_only_training_moves_them():
    images = Images(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), torch.arange(4))
    collate = Collator(padding=2, flip=True)

    def batch(augment):
        dataset = ImageDataset(images, augment=augment)
        return collate([dataset[row] for row in range(len(dataset))])

    plain = batch(False)
    assert torch.equal(plain["pixel_values"], images.pixels.float() / 255)
    assert torch.equal(plain["labels"], images.labels)
    moved = batch(True)["pixel_values"]
    assert moved.shape == plain["pixel_values"].shape
    assert not torch.equal(moved, plain["pixel_values"])


def test_every_crop_and_flip_occurs():
    pixels = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    pixels[0, 0, 1, 0] = 255  # at the left, in the middle row
    row = ImageDataset(Images(pixels, torch.zeros(1).long()), augment=True)[0]
    collate = Collator(padding=1, flip=True)
    seen = {
        tuple(torch.nonzero(collate([row])["pixel_values"][0, 0]).flatten().tolist())
        for _ in range(300)
    }
    # Three rows; columns 0, 1 or out of the image, and mirrored 2 and 1.
    assert seen == {(r, c) for r in range(3) for c in range(3)} | {()}
