"""Image to pixels: as on ImageNet in the paper's time, by torchvision and timm, or by Pillow alone.

Training takes a random resized crop and a flip; torchvision adds colour jitter, and timm
RandAugment and random erasing where they are asked for. Evaluation resizes the shorter side to
8/7 of the image size and takes the centre.
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.utils import is_timm_available, is_torchvision_available

from recipes.common.photos import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    central_crop,
    random_flip,
    random_resized_crop,
    to_pixels,
)

__all__ = ["BACKENDS", "Mixing", "evaluation_transform", "training_transform"]

Transform = Callable[[Image.Image], Tensor]
BACKENDS = ("torchvision", "pillow")


def _chosen(backend: str | None) -> str:
    """Return the backend that is meant; only None may choose."""
    if backend is None:
        return "torchvision" if is_torchvision_available() else "pillow"
    if backend not in BACKENDS:
        raise ValueError(f"transforms={backend!r} is unknown; known: {', '.join(BACKENDS)}.")
    if backend == "torchvision" and not is_torchvision_available():
        raise ModuleNotFoundError(
            "transforms='torchvision' needs torchvision: pip install 'hf-adamp[vision]'"
        )
    return backend


class _PillowTraining:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        return to_pixels(random_flip(random_resized_crop(image, self.size)))


class _PillowEvaluation:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        return to_pixels(central_crop(image, self.size, shorter=_shorter(self.size)))


def _shorter(size: int) -> int:
    return round(size * 8 / 7)  # 256 for 224


def training_transform(
    size: int,
    *,
    backend: str | None = None,
    colour_jitter: float = 0.0,
    rand_augment: str | None = None,
    random_erasing: float = 0.0,
) -> Transform:
    """Return the random transform of training images.

    Args:
        size: side of the square, in pixels.
        backend: "torchvision", "pillow", or None for torchvision where it is installed.
        colour_jitter: by how much brightness, contrast and saturation vary. Default: 0.
        rand_augment: timm's description, such as "rand-m9-mstd0.5". Default: none.
        random_erasing: probability of a rectangle of noise. Default: 0.

    Raises:
        ValueError: the backend is unknown, or Pillow is asked for what it cannot do.
        ModuleNotFoundError: torchvision or timm is needed and missing.
    """
    further = colour_jitter or rand_augment or random_erasing
    chosen = _chosen(backend)
    if chosen == "pillow":
        if further:
            raise ValueError(
                f"colour_jitter={colour_jitter}, rand_augment={rand_augment!r}, random_erasing="
                f"{random_erasing} need torchvision and timm: pip install 'hf-adamp[vision]'"
            )
        return _PillowTraining(size)
    from torchvision.transforms import v2  # noqa: PLC0415 -- of the full size only

    steps: list[Any] = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    if colour_jitter:
        steps.append(v2.ColorJitter(colour_jitter, colour_jitter, colour_jitter))
    if rand_augment:
        steps.append(_rand_augment(rand_augment, size))
    steps += _to_tensor(v2)
    if random_erasing:
        steps.append(_erasing(random_erasing))
    compose: Transform = v2.Compose(steps)
    return compose


def evaluation_transform(size: int, *, backend: str | None = None) -> Transform:
    """Return the transform of evaluated images; arguments and errors as in training."""
    if _chosen(backend) == "pillow":
        return _PillowEvaluation(size)
    from torchvision.transforms import v2  # noqa: PLC0415 -- of the full size only

    steps = [v2.Resize(_shorter(size), antialias=True), v2.CenterCrop(size), *_to_tensor(v2)]
    compose: Transform = v2.Compose(steps)
    return compose


def _to_tensor(v2: Any) -> list[Any]:
    scaled = v2.ToDtype(torch.float32, scale=True)
    return [v2.PILToTensor(), scaled, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


def _timm() -> Any:
    if not is_timm_available():
        raise ModuleNotFoundError(
            "rand_augment, random_erasing, mixup and cutmix are timm's: "
            "pip install 'hf-adamp[vision]'"
        )
    import timm.data  # noqa: PLC0415 -- of the full size only

    return timm.data


def _rand_augment(description: str, size: int) -> Any:
    mean = tuple(round(255 * part) for part in IMAGENET_MEAN)
    options = {"translate_const": int(size * 0.45), "img_mean": mean}
    return _timm().auto_augment.rand_augment_transform(description, options)


def _erasing(probability: float) -> Any:
    return _timm().random_erasing.RandomErasing(probability, mode="pixel", device="cpu")


class Mixing:
    """Makes a batch of pairs, mixed by timm's Mixup or CutMix where asked for.

    Args:
        num_labels: classes.
        mixup: alpha of Mixup's Beta distribution. Default: 0, none.
        cutmix: alpha of CutMix's. Default: 0, none.
    """

    def __init__(self, num_labels: int, *, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        self._mix = None
        if mixup or cutmix:
            # Labels are smoothed by the loss, for all kinds of batches alike.
            self._mix = _timm().Mixup(
                mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_labels
            )

    def __call__(self, pairs: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """Return pixels (batch, 3, size, size); labels (batch,), mixed ones (batch, num_labels)."""
        pixels = torch.stack([pixels for pixels, _ in pairs])
        labels = torch.tensor([label for _, label in pairs])
        if self._mix is not None:
            pixels, labels = self._mix(pixels, labels)
        # The layout in which convolutions are quickest; weights stay as checkpoints need them.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return {"pixel_values": pixels, "labels": labels}
