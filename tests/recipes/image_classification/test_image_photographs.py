import numpy as np
import pytest
import torch
from image_files import encode, write_folders

from recipes.image_classification.photographs import PhotoSet, decode, find_unreadable
from recipes.image_classification.sources import ClassFolders


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy())


@pytest.fixture
def photos(tmp_path):
    return ClassFolders(write_folders(tmp_path) / "train")


def spoil(photos, number, content=None):
    """Cut a file short, or put something else in its place."""
    path = photos._files[number]
    path.write_bytes(path.read_bytes()[:200] if content is None else content)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_decode_returns_rgb(mode):
    assert decode(encode(1, mode=mode)).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"no image", encode(1)[:200]])
def test_decode_names_what_is_wrong(content):
    with pytest.raises(ValueError, match="Error"):
        decode(content)


def test_photos_come_with_their_labels(photos):
    images = PhotoSet(photos, to_tensor, numbers=[4, 11])
    assert len(images) == 2
    pixels, label = images[1]
    assert label == 2
    assert pixels.equal(to_tensor(decode(photos.read(11))))


def test_unreadable_photo_is_replaced_by_the_next_and_reported(photos, tmp_path, caplog):
    spoil(photos, 5)
    images = PhotoSet(photos, to_tensor, report=tmp_path / "bad.txt")
    assert images[5][0].equal(images[6][0])
    assert "1.jpg cannot be read" in caplog.text
    assert (tmp_path / "bad.txt").read_text().splitlines() == [photos.where(5)]


def test_last_photo_is_replaced_by_the_first(photos):
    spoil(photos, 11, b"")
    images = PhotoSet(photos, to_tensor)
    assert images[11][0].equal(images[0][0])


def test_photos_that_are_all_unreadable_stop_the_run(photos):
    for number in range(12):
        spoil(photos, number, b"")
    with pytest.raises(RuntimeError, match="12 images in a row cannot be read"):
        PhotoSet(photos, to_tensor)[3]


def test_unreadable_photos_are_found_before_training(photos):
    spoil(photos, 2)
    spoil(photos, 7, b"")
    found = find_unreadable(photos, processes=2)
    assert list(found) == [2, 7]
    assert "2.jpg" in found[2]
    assert find_unreadable(photos, 1, numbers=[3, 7]).keys() == {7}
