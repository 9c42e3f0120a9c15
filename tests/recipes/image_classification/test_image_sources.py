import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from image_files import CLASSES, encode, write_folders, write_shard

from recipes.image_classification.sources import (
    SOURCES,
    ClassFolders,
    HubRows,
    Shards,
    check_labels,
)


def test_folders_give_every_image_its_class(tmp_path):
    photos = SOURCES["folder"](str(write_folders(tmp_path)))
    train, validation = photos["train"], photos["validation"]
    assert (len(train), len(validation)) == (12, 6)
    assert tuple(train.names) == tuple(validation.names) == CLASSES
    assert train.read(5) == (tmp_path / "train" / "dog" / "1.jpg").read_bytes()
    assert train.label(5) == train.labels()[5] == 1
    assert train.where(5).endswith("train/dog/1.jpg")


@pytest.mark.parametrize("evaluation", ["val", "validation", "valid", "test"])
def test_folders_find_the_evaluation_split(tmp_path, evaluation):
    write_folders(tmp_path, evaluation=evaluation)
    assert len(SOURCES["folder"](str(tmp_path))["validation"]) == 6


@pytest.mark.parametrize(
    ("counts", "evaluated", "message"),
    [
        ((4, 0, 4), (2, 2, 2), r"train: no image .* in dog; add or remove"),
        ((4, 4, 4), (2, 2, 0), r"val: no image .* in owl"),
    ],
)
def test_empty_class_folder_is_named(tmp_path, counts, evaluated, message):
    write_folders(tmp_path, counts, evaluated)
    with pytest.raises(ValueError, match=message):
        SOURCES["folder"](str(tmp_path))


def test_class_missing_from_a_split_is_named(tmp_path):
    write_folders(tmp_path, evaluated=(2, 0, 2))
    (tmp_path / "val" / "dog").rmdir()
    with pytest.raises(ValueError, match="val lacks dog, which the training set has"):
        SOURCES["folder"](str(tmp_path))


def test_class_of_the_evaluation_split_alone_is_named(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(ValueError, match="val has emu, which the training set lacks"):
        SOURCES["folder"](str(tmp_path))


def test_folder_without_splits_says_which_are_needed(tmp_path):
    with pytest.raises(ValueError, match="has no folder train"):
        SOURCES["folder"](str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="holds no class folder"):
        SOURCES["folder"](str(tmp_path))


def rows(labels, column="image"):
    features = Features({column: Image(), "label": ClassLabel(names=list(CLASSES))})
    images = [{"bytes": encode(number), "path": None} for number in range(len(labels))]
    return Dataset.from_dict({column: images, "label": labels}, features=features)


@pytest.mark.parametrize("column", ["image", "img"])
def test_rows_of_the_hub_are_read_as_bytes(column):
    photos = HubRows(rows([0, 2, 1], column))
    assert photos.read(1) == encode(1)
    assert photos.labels().tolist() == [0, 2, 1]
    assert tuple(photos.names) == CLASSES


def test_rows_without_an_image_column_are_refused():
    with pytest.raises(ValueError, match="has the columns picture, label; image and label"):
        HubRows(rows([0], "picture"))


def test_shards_are_read_by_number(tmp_path):
    first = [("a/1.jpg", encode(1)), ("a/1.cls", b"2"), ("a/1.json", b"{}")]
    second = [("b/1.cls", b"0\n"), ("b/1.JPEG", encode(2)), ("b/2.png", encode(3, kind="PNG"))]
    write_shard(tmp_path / "x-train-0.tar", first)
    write_shard(tmp_path / "x-train-1.tar", [*second, ("b/2.cls", b"1")])
    write_shard(tmp_path / "x-validation-0.tar", [("1.jpg", encode(4)), ("1.cls", b"1")])
    photos = SOURCES["shards"](str(tmp_path))
    train = photos["train"]
    assert [train.read(number) for number in range(3)] == [
        encode(1),
        encode(2),
        encode(3, kind="PNG"),
    ]
    assert train.labels().tolist() == [train.label(n) for n in range(3)] == [2, 0, 1]
    assert "x-train-1.tar at byte" in train.where(2)
    assert photos["validation"].read(0) == encode(4)


def test_image_without_a_label_in_a_shard_is_named(tmp_path):
    shard = write_shard(tmp_path / "train.tar", [("a/1.jpg", encode(1)), ("a/2.cls", b"1")])
    with pytest.raises(ValueError, match=r"no KEY\.cls beside the image of a/1"):
        Shards([shard])


def test_shard_without_an_image_is_named(tmp_path):
    shard = write_shard(tmp_path / "train.tar", [("a/1.cls", b"1")])
    with pytest.raises(ValueError, match=r"train\.tar holds no image"):
        Shards([shard])


def test_folder_without_shards_counts_what_is_there(tmp_path):
    write_shard(tmp_path / "train.tar", [("1.jpg", encode(1)), ("1.cls", b"1")])
    with pytest.raises(ValueError, match="holds 1 tar files with train in their name and 0"):
        SOURCES["shards"](str(tmp_path))


def test_labels_are_counted(tmp_path):
    photos = SOURCES["folder"](str(write_folders(tmp_path)))
    assert check_labels(photos, None) == check_labels(photos, 3) == 3


def test_label_out_of_range_is_named(tmp_path):
    photos = SOURCES["folder"](str(write_folders(tmp_path)))
    with pytest.raises(ValueError, match=r"train: 4 labels are not in 0 to 1; the first is 2.*owl"):
        check_labels(photos, 2)


def test_class_without_a_training_image_is_named(tmp_path):
    photos = SOURCES["folder"](str(write_folders(tmp_path)))
    with pytest.raises(ValueError, match="train has no image of label 3"):
        check_labels(photos, 4)


def test_nested_folders_belong_to_their_class(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "cat" / "more").mkdir()
    (tmp_path / "train" / "cat" / "more" / "9.JPEG").write_bytes(encode(9))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    photos = ClassFolders(tmp_path / "train")
    assert np.bincount(photos.labels()).tolist() == [5, 4, 4]
