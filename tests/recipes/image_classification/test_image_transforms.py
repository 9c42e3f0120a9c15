import pytest
import torch
from image_files import encode
from transformers.utils import is_timm_available, is_torchvision_available

from recipes.image_classification.photographs import decode
from recipes.image_classification.transforms import (
    BACKENDS,
    Mixing,
    evaluation_transform,
    training_transform,
)

needs_torchvision = pytest.mark.skipif(
    not is_torchvision_available(), reason="needs torchvision (make test-vision)"
)
needs_timm = pytest.mark.skipif(
    not (is_timm_available() and is_torchvision_available()),
    reason="needs timm and torchvision (make test-vision)",
)
backends = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=needs_torchvision if name == "torchvision" else ())
        for name in BACKENDS
    ],
)


@pytest.fixture
def image():
    return decode(encode(1, size=(70, 50)))


@backends
def test_transforms_return_a_square_of_normalized_pixels(image, backend):
    for transform in (
        training_transform(32, backend=backend),
        evaluation_transform(32, backend=backend),
    ):
        pixels = transform(image)
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == torch.float32
        # Of black and white, by ImageNet's mean and deviation.
        assert -2.2 < pixels.min() < pixels.max() < 2.7


@backends
def test_training_is_random_and_evaluation_is_not(image, backend):
    training, evaluation = (
        training_transform(32, backend=backend),
        evaluation_transform(32, backend=backend),
    )
    assert not training(image).equal(training(image))
    assert evaluation(image).equal(evaluation(image))


@needs_torchvision
def test_evaluation_is_alike_by_torchvision_and_pillow(image):
    ours, theirs = (evaluation_transform(32, backend=name)(image) for name in BACKENDS)
    # Both are Pillow's bilinear filter with antialiasing, on an image of the same size.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


@needs_timm
def test_torchvision_adds_what_is_asked_for(image):
    plain = training_transform(32, backend="torchvision")
    full = training_transform(
        32,
        backend="torchvision",
        colour_jitter=0.4,
        rand_augment="rand-m9-mstd0.5",
        random_erasing=1.0,
    )
    torch.manual_seed(0)
    without = plain(image)
    torch.manual_seed(0)
    assert not full(image).equal(without)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_missing_torchvision_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"hf-adamp\[vision\]"):
        training_transform(32, backend="torchvision")


@pytest.mark.parametrize(
    "options", [{"colour_jitter": 0.4}, {"rand_augment": "rand-m9"}, {"random_erasing": 0.2}]
)
def test_pillow_refuses_what_it_cannot_do(options):
    with pytest.raises(ValueError, match="need torchvision and timm"):
        training_transform(32, backend="pillow", **options)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="transforms='opencv' is unknown; known: torchvision"):
        evaluation_transform(32, backend="opencv")


def test_plain_batch_keeps_its_labels():
    batch = Mixing(3)([(torch.zeros(3, 4, 4), 2), (torch.ones(3, 4, 4), 0)])
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert batch["labels"].tolist() == [2, 0]


@needs_timm
def test_cutmix_mixes_labels_by_the_area_it_has_cut():
    pairs = [(torch.full((3, 32, 32), float(label)), label) for label in (0, 1)]
    shares = set()
    for _ in range(20):
        batch = Mixing(2, cutmix=1.0)(pairs)
        # Pixels of an image are its class, so their mean is the share of class 1.
        share = batch["pixel_values"].mean(dim=(1, 2, 3))
        torch.testing.assert_close(batch["labels"][:, 1], share)
        shares.add(float(share[0]))
    assert len(shares) > 5


@needs_timm
def test_mixup_mixes_labels_as_pixels():
    pairs = [(torch.full((3, 8, 8), float(label)), label) for label in (0, 1)]
    batch = Mixing(2, mixup=0.2)(pairs)
    torch.testing.assert_close(batch["labels"][:, 1], batch["pixel_values"].mean(dim=(1, 2, 3)))
