"""Photographs to pixels, against what Pillow and arithmetic say."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.common.photos import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    central_crop,
    random_flip,
    random_resized_crop,
    to_pixels,
)
from recipes.common.photos import _draw_box as draw_box


def ramp(width, height):
    """An image whose red is its column and whose green is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def test_random_resized_crop_draws_areas_and_shapes_of_its_ranges():
    boxes = np.array([draw_box(ramp(200, 150), (0.2, 0.6), (0.5, 2.0)) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 200).all()
    assert (boxes[:, 3] <= 150).all()
    share, shape = width * height / 30000, width / height
    assert share.min() > 0.19
    assert share.max() < 0.61
    assert shape.min() > 0.48
    assert shape.max() < 2.1
    # Uniform in the area as far as all shapes fit, and in the logarithm of the shape.
    assert abs(np.median(np.log(shape))) < 0.08
    assert abs(np.mean(share < 0.3) - np.mean((share > 0.3) & (share < 0.4))) < 0.05


def test_random_resized_crop_is_the_piece_resized():
    image = ramp(90, 60)
    state = torch.get_rng_state()
    cropped = random_resized_crop(image, 32)
    torch.set_rng_state(state)
    box = draw_box(image, (0.08, 1.0), (3 / 4, 4 / 3))
    expected = image.crop(box).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(cropped, int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize("size", [(300, 20), (20, 300)])
def test_random_resized_crop_of_a_strip_falls_back_to_its_middle(size):
    left, upper, right, lower = draw_box(ramp(*size), (0.9, 1.0), (3 / 4, 4 / 3))
    assert math.isclose(left + right, size[0], abs_tol=1)
    assert math.isclose(upper + lower, size[1], abs_tol=1)
    assert max(right - left, lower - upper) == 27
    assert min(right - left, lower - upper) == 20


def test_random_flip_mirrors_half_of_the_images():
    image = ramp(7, 3)
    mirrored = np.asarray(image)[:, ::-1]
    count = 0
    for _ in range(400):
        result = np.asarray(random_flip(image))
        assert (result == mirrored).all() or (result == np.asarray(image)).all()
        count += (result == mirrored).all()
    assert 160 < count < 240


@pytest.mark.parametrize("size", [(100, 80), (80, 100), (250, 130)])
def test_central_crop_resizes_the_shorter_side_and_takes_the_middle(size):
    cropped = central_crop(ramp(*size), 56, shorter=64)
    assert cropped.size == (56, 56)
    scale = min(size) / 64
    pixels = np.asarray(cropped, float)[..., :2]
    middle = pixels.mean(axis=(0, 1))
    assert np.allclose(middle, [(side - 1) / 2 for side in size], atol=scale)
    assert np.allclose(np.diff(pixels[28, :, 0])[:20], scale, atol=1.01)


def test_central_crop_refuses_a_square_that_does_not_fit():
    with pytest.raises(ValueError, match=r"shorter=50 must be at least size=56\."):
        central_crop(ramp(100, 80), 56, shorter=50)


def test_to_pixels_normalizes_by_channel():
    pixels = to_pixels(Image.new("L", (4, 2), 255))
    assert pixels.shape == (3, 2, 4)
    expected = (1 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert np.allclose(pixels[:, 0, 0], expected, rtol=1e-6)
