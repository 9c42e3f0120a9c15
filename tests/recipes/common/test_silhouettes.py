import builtins

import numpy as np
import pytest
import torch

from recipes.common import silhouettes


@pytest.fixture(scope="module")
def splits():
    return silhouettes.load_silhouettes()


def test_silhouettes_have_the_documented_sizes(splits):
    sizes = {name: len(split.images) for name, split in splits.items()}
    assert sizes == {"train": 6000, "validation": 1500, "test": 2216}
    assert splits["train"].images.dtype == torch.uint8
    assert splits["test"].images.shape[1:] == (28, 28)


def test_silhouettes_are_all_different_across_the_splits(splits):
    images = torch.cat([split.images for split in splits.values()]).flatten(1).numpy()
    assert len(np.unique(images, axis=0)) == 9716


def test_silhouettes_hold_every_class_in_proportion(splits):
    shares = [split.labels.bincount(minlength=10) / len(split.labels) for split in splits.values()]
    for share in shares[1:]:
        torch.testing.assert_close(share, shares[0], rtol=0, atol=1e-3)


def test_silhouettes_are_in_no_order(splits):
    """Whoever takes the first few of a set has all classes."""
    for split in splits.values():
        counts = split.labels[:500].bincount(minlength=10)
        assert counts.min() > 25
        assert counts.max() < 80


def test_silhouettes_are_split_the_same_way_each_time(splits):
    again = silhouettes.load_silhouettes()
    for name, split in splits.items():
        assert again[name].images.equal(split.images)
        assert again[name].labels.equal(split.labels)
    # Recorded once: another NumPy must not deal them out differently.
    assert splits["test"].labels.mul(torch.arange(2216)).sum() == 11_357_064


def test_silhouettes_are_read_without_importing_their_package(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert not name.startswith(("animal_shape_mnist", "tensorflow"))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    silhouettes.load_silhouettes()


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(silhouettes, "_PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install animal-shape-mnist"):
        silhouettes.load_silhouettes()


def test_other_files_are_refused(monkeypatch):
    monkeypatch.setattr(silhouettes, "read_array", lambda path: np.zeros((5, 28, 28), "u1"))
    with pytest.raises(ValueError, match=r"install animal-shape-mnist==0\.39"):
        silhouettes.load_silhouettes()


def test_pixels_lie_between_minus_one_and_one():
    pixels = silhouettes.to_pixels(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert pixels.tolist() == [[[[-1.0, 1.0]]]]
