"""ReBias's networks: convolutions on top of each other, and BagNet-18, which sees textures only.

Bahng et al., "Learning De-biased Representations with Biased Representations", ICML 2020,
https://github.com/clovaai/rebias; BagNet is by Brendel and Bethge, "Approximating CNNs with
Bag-of-local-Features models works surprisingly well on ImageNet", ICLR 2019.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_rebias import BagNetConfig, StackedConvConfig

__all__ = ["BagNetForImageClassification", "StackedConvForImageClassification"]

STEM_MOMENTUM = 0.001  # of BagNet's first BatchNorm, as published; the others have torch's 0.1


class _PooledClassifier(PreTrainedModel):
    """A feature extractor `features`, the average over all places, and a linear `classifier`."""

    main_input_name = "pixel_values"
    features: nn.Module
    classifier: nn.Module

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as published: Kaiming by what leaves a convolution, torch's way otherwise."""
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Tensor, ...]:
        """Classify images.

        Args:
            pixel_values: (images, channel, height, width).
            labels: class numbers, (images,). Default: None, no loss.
            output_hidden_states: whether the last map comes along, before it is averaged.
                Default: no.
            return_dict: False returns a tuple. Default: None, an output object.
        """
        last = self.features(pixel_values)
        logits = self.classifier(last.mean(dim=(-2, -1)))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        states = (last,) if output_hidden_states else None
        output = ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=states
        )
        return output.to_tuple() if return_dict is False else output


class StackedConvForImageClassification(_PooledClassifier):
    """Convolutions with BatchNorm and ReLU, without pooling between them.

    Every convolution feeds a BatchNorm, so AdamP projects all weights but the last layer's.

    Args:
        config: sizes; `num_labels` as in any model.

    Example:
        ```python
        model = StackedConvForImageClassification(StackedConvConfig(num_labels=10))
        logits = model(torch.randn(2, 3, 28, 28)).logits  # (2, 10)
        ```
    """

    config_class = StackedConvConfig

    def __init__(self, config: StackedConvConfig) -> None:
        super().__init__(config)
        widths, kernel = [config.num_channels, *config.channels], config.kernel_size
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(narrow, wide, kernel, stride=stride, padding=kernel // 2),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(),
                )
                for (narrow, wide), stride in zip(pairwise(widths), config.strides, strict=True)
            )
        )
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.post_init()


class Block(nn.Module):
    """Two convolutions without padding, around which the input is added.

    Args:
        narrow: channels of the input.
        wide: channels of the output.
        stride: of the first convolution.
        kernel: side of the first convolution's kernel, 1 or 3.
    """

    def __init__(self, narrow: int, wide: int, stride: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrow, wide, kernel, stride=stride, bias=False)
        self.norm1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or narrow != wide:
            self.shortcut = nn.Sequential(
                nn.Conv2d(narrow, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, features: Tensor) -> Tensor:
        """(images, channel, height, width) to the next block's."""
        inner = torch.relu(self.norm1(self.conv1(features)))
        inner = self.norm2(self.conv2(inner))
        height, width = inner.shape[-2:]
        # A kernel of 3 without padding loses places, which the shortcut loses below and right.
        return torch.relu(inner + self.shortcut(features)[..., :height, :width])


class BagNetForImageClassification(_PooledClassifier):
    """A stem of two convolutions, then stages of residual blocks, almost all of them 1 × 1.

    Args:
        config: sizes; `num_labels` as in any model.

    Example:
        ```python
        model = BagNetForImageClassification(BagNetConfig(num_labels=9))
        logits = model(torch.randn(2, 3, 224, 224)).logits  # (2, 9)
        ```
    """

    config_class = BagNetConfig

    def __init__(self, config: BagNetConfig) -> None:
        super().__init__(config)
        narrow = config.embedding_size
        layers: list[nn.Module] = [
            nn.Conv2d(config.num_channels, narrow, 1, bias=False),
            nn.Conv2d(narrow, narrow, 3, bias=False),
            nn.BatchNorm2d(narrow, momentum=STEM_MOMENTUM),
            nn.ReLU(),
        ]
        for wide, depth, stride, count in zip(
            config.hidden_sizes, config.depths, config.strides, config.wide_blocks, strict=True
        ):
            for number in range(depth):
                kernel = 3 if number < count else 1
                layers.append(Block(narrow, wide, stride if number == 0 else 1, kernel))
                narrow = wide
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(narrow, config.num_labels)
        self.post_init()


for _config, _model in (
    (StackedConvConfig, StackedConvForImageClassification),
    (BagNetConfig, BagNetForImageClassification),
):
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
    _model.register_for_auto_class("AutoModelForImageClassification")
