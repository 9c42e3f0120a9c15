"""Configuration of the Wide-ResNet: depth, width, and the normalisation inside the network."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

__all__ = ["WideResNetConfig"]

# Per-channel statistics of CIFAR-10's training pixels, scaled to [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class WideResNetConfig(PretrainedConfig):
    """Settings of `WideResNetForImageClassification`; the defaults are WRN-28-10 for CIFAR-10.

    Args:
        depth: number of convolutions of the longest path, 6·n + 4. Default: 28.
        widen_factor: channels of the three stages are 16, 32 and 64 times this. Default: 10.
        strides: of the first block of each stage. Default: (1, 2, 2).
        dropout: probability between the two convolutions of a block, in [0, 1). Default: 0.0.
        num_channels: of the images. Default: 3.
        image_size: pixels a side. Default: 32.
        image_mean, image_std: what the network subtracts and divides by, one value a channel.
            Images enter it as values in [0, 1], so that an attack's radius is one of pixels.
            Defaults: CIFAR-10's.
        kwargs: of `PretrainedConfig`, such as `num_labels`.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        ```python
        model = WideResNetForImageClassification(WideResNetConfig(depth=34, num_labels=10))
        ```

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, table 1.
    """

    model_type = "wide_resnet"

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        strides: Sequence[int] = (1, 2, 2),
        dropout: float = 0.0,
        num_channels: int = 3,
        image_size: int = 32,
        image_mean: Sequence[float] = CIFAR10_MEAN,
        image_std: Sequence[float] = CIFAR10_STD,
        **kwargs: Any,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth} must be 6·n + 4 from 10 up, such as 16, 28, 34.")
        if widen_factor < 1:
            raise ValueError(f"widen_factor={widen_factor} must be at least 1.")
        if len(strides) != 3 or min(strides) < 1:
            raise ValueError(f"strides={tuple(strides)} must be three numbers from 1 up.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1).")
        if not len(image_mean) == len(image_std) == num_channels:
            raise ValueError(
                f"image_mean={tuple(image_mean)} and image_std={tuple(image_std)} must have one "
                f"value for each of num_channels={num_channels}."
            )
        if min(image_std) <= 0:
            raise ValueError(f"image_std={tuple(image_std)} must be above 0: it divides.")
        self.depth = depth
        self.widen_factor = widen_factor
        self.strides = list(strides)
        self.dropout = dropout
        self.num_channels = num_channels
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        super().__init__(**kwargs)


AutoConfig.register(WideResNetConfig.model_type, WideResNetConfig, exist_ok=True)
WideResNetConfig.register_for_auto_class()
