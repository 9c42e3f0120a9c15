"""Biased-MNIST's colours: their frequencies, and what a painted digit looks like."""

import numpy as np
import pytest
import torch

from recipes.rebias.colours import COLOURS, UNBIASED, assign_colours, paint

LABELS = np.repeat(np.arange(10), 1000)


@pytest.mark.parametrize("rho", [0.999, 0.997, 0.995, 0.99, 0.95, 1.0])
def test_assign_colours_gives_a_share_rho_its_own_colour(rho):
    colours = assign_colours(LABELS, rho, seed=1)
    for label in range(10):
        counts = np.bincount(colours[label == LABELS], minlength=10)
        assert counts[label] == int(1000 * rho)
        others = np.delete(counts, label)
        assert others.sum() == 1000 - counts[label]
        assert others.max() <= np.ceil(others.sum() / 9)


def test_assign_colours_unbiased_makes_all_ten_equally_frequent():
    colours = assign_colours(LABELS, UNBIASED, seed=1)
    table = np.histogram2d(LABELS, colours, bins=10)[0]
    assert (table == 100).all()


def test_assign_colours_is_a_matter_of_the_seed():
    first, second = (assign_colours(LABELS, 0.9, seed=1) for _ in range(2))
    assert (first == second).all()
    assert (first != assign_colours(LABELS, 0.9, seed=2)).any()


def test_assign_colours_refuses_what_is_no_share():
    with pytest.raises(ValueError, match=r"rho=1\.5 must be in \[0, 1\]"):
        assign_colours(LABELS, 1.5, seed=1)


def test_colours_are_ten_different_ones():
    assert len(set(COLOURS)) == 10


def test_paint_is_white_on_the_colour():
    digits = np.zeros((2, 28, 28), np.uint8)
    digits[:, 3, 4], digits[:, 5, 6] = 255, 1  # any grey becomes white
    images = paint(digits, np.array([0, 9]))
    assert images.shape == (2, 3, 28, 28)
    assert images.dtype == torch.float32
    assert (images[:, :, 3, 4] == 1).all()
    assert (images[:, :, 5, 6] == 1).all()
    assert images[0, :, 0, 0].tolist() == [1, -1, -1]
    assert torch.allclose(images[1, :, 0, 0], torch.tensor(128 / 127.5 - 1), atol=1e-6)


def test_paint_averages_blocks():
    digits = np.zeros((1, 28, 28), np.uint8)
    digits[0, 0, 0] = 9
    images = paint(digits, np.array([0]), pooling=2)
    assert images.shape == (1, 3, 14, 14)
    assert images[0, :, 0, 0].tolist() == [1, -0.5, -0.5]
    assert images[0, :, 1, 1].tolist() == [1, -1, -1]
