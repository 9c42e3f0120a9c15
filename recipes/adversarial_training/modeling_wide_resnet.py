"""Wide-ResNet (Zagoruyko and Komodakis, BMVC 2016) for images with values in [0, 1]."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_wide_resnet import WideResNetConfig

__all__ = ["WideResNetForImageClassification"]

STEM = 16  # channels before the first stage, whatever the width


class Block(nn.Module):
    """BN, ReLU, convolution, twice, beside a shortcut: (N, C, H, W) to (N, D, H/stride, W/stride).

    Where the width changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = channels == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of both paths."""
        active = functional.relu(self.norm1(images))
        hidden = functional.relu(self.norm2(self.conv1(active)))
        shortcut = images if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(self.dropout(hidden))


class WideResNetForImageClassification(PreTrainedModel):
    """Wide-ResNet with a linear classifier over the averaged features.

    The first convolution of each block feeds a BatchNorm and nothing else, so it is scale-invariant
    by row; the second is added to the shortcut first, so it is not exactly.

    Args:
        config: sizes; `num_labels` classes.

    Example:
        ```python
        model = WideResNetForImageClassification(WideResNetConfig(num_labels=10))
        logits = model(torch.rand(2, 3, 32, 32)).logits  # (2, 10)
        ```

    Source: Zagoruyko and Komodakis, section 2; weights start as in He et al. (2015), fan-out.
    """

    config_class = WideResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__(config)
        per_channel = (1, config.num_channels, 1, 1)
        for name, values in (("mean", config.image_mean), ("std", config.image_std)):
            # Saved, unlike most constants: a model loaded on the meta device keeps them.
            self.register_buffer(name, torch.tensor(values).reshape(per_channel))
        blocks = (config.depth - 4) // 6
        self.stem = nn.Conv2d(config.num_channels, STEM, 3, padding=1, bias=False)
        channels, stages = STEM, []
        for stage, stride in enumerate(config.strides):
            width = STEM * 2**stage * config.widen_factor
            inputs = [channels] + [width] * (blocks - 1)
            steps = [stride] + [1] * (blocks - 1)
            stages += [
                Block(c, width, s, config.dropout) for c, s in zip(inputs, steps, strict=True)
            ]
            channels = width
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """Classify images.

        Args:
            pixel_values: values in [0, 1], (images, channels, height, width).
            labels: class numbers, (images,). Default: None, no loss.
            return_dict: False returns a tuple. Default: None, an output with `logits`.
        """
        hidden = self.stem((pixel_values - self.mean) / self.std)
        hidden = functional.relu(self.norm(self.blocks(hidden)))
        logits = self.classifier(hidden.mean(dim=(-2, -1)))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


AutoModelForImageClassification.register(
    WideResNetConfig, WideResNetForImageClassification, exist_ok=True
)
WideResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
