"""Configurations of ReBias's networks: stacked convolutions, and BagNet-18."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

__all__ = ["BagNetConfig", "StackedConvConfig"]


class StackedConvConfig(PretrainedConfig):
    """Settings of `StackedConvForImageClassification`; the defaults are those of the published f.

    Args:
        kernel_size: side of every kernel, odd. 7 sees shapes; 1, that of the biased network, sees
            nothing but colours. Default: 7.
        channels: width of each convolution. Default: (16, 32, 64, 128).
        strides: of each convolution. Default: None, 1 everywhere, as published.
        num_channels: channels of the image. Default: 3.

    Raises:
        ValueError: a kernel has an even side, or there is no convolution.

    Source: Bahng et al., ICML 2020, https://github.com/clovaai/rebias
    """

    model_type = "stacked_conv"

    def __init__(
        self,
        kernel_size: int = 7,
        channels: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[int] | None = None,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size} must be odd, to keep the middle of a patch."
            )
        if not channels or min(channels) < 1:
            raise ValueError(f"channels={tuple(channels)} must be one or more numbers from 1 up.")
        strides = [1] * len(channels) if strides is None else list(strides)
        if len(strides) != len(channels):
            raise ValueError(
                f"strides={tuple(strides)} must be as many as channels={tuple(channels)}."
            )
        self.kernel_size = kernel_size
        self.channels = list(channels)
        self.strides = strides
        self.num_channels = num_channels
        super().__init__(**kwargs)


class BagNetConfig(PretrainedConfig):
    """Settings of `BagNetForImageClassification`; the defaults are those of BagNet-18.

    Args:
        embedding_size: width of the stem. Default: 64.
        hidden_sizes: width of each stage. Default: (64, 128, 256, 512).
        depths: blocks of each stage. Default: (2, 2, 2, 2).
        strides: of the first block of each stage. Default: (2, 2, 2, 1).
        wide_blocks: how many blocks of each stage begin with a 3 × 3 convolution; all others are
            1 × 1. Default: (1, 0, 0, 0), with which a place of the last map sees 5 × 5 pixels.
        num_channels: channels of the image. Default: 3.

    Raises:
        ValueError: the stages are not equally many everywhere.

    Source: Brendel and Bethge, "Approximating CNNs with Bag-of-local-Features models", ICLR 2019;
    as varied by Bahng et al., ICML 2020, https://github.com/clovaai/rebias
    """

    model_type = "bagnet"

    def __init__(
        self,
        embedding_size: int = 64,
        hidden_sizes: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        strides: Sequence[int] = (2, 2, 2, 1),
        wide_blocks: Sequence[int] = (1, 0, 0, 0),
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        lengths = {len(hidden_sizes), len(depths), len(strides), len(wide_blocks)}
        if len(lengths) != 1:
            raise ValueError(
                f"hidden_sizes={tuple(hidden_sizes)}, depths={tuple(depths)}, "
                f"strides={tuple(strides)} and wide_blocks={tuple(wide_blocks)} must have one "
                "number a stage each."
            )
        self.embedding_size = embedding_size
        self.hidden_sizes = list(hidden_sizes)
        self.depths = list(depths)
        self.strides = list(strides)
        self.wide_blocks = list(wide_blocks)
        self.num_channels = num_channels
        super().__init__(**kwargs)


AutoConfig.register(StackedConvConfig.model_type, StackedConvConfig, exist_ok=True)
StackedConvConfig.register_for_auto_class()
AutoConfig.register(BagNetConfig.model_type, BagNetConfig, exist_ok=True)
BagNetConfig.register_for_auto_class()
