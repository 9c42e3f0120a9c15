"""A convolutional network for 28x28 images that trains in seconds on one CPU core.

    model = SmallConvNet(num_labels=10)
    loss, logits = model(pixel_values, labels)

All its convolutions feed a BatchNorm, so each of their filters is scale-invariant; the linear layer
is not.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CONVOLUTIONS", "SmallConvNet"]

CONVOLUTIONS = r"convolution\.weight$"  # names of the scale-invariant weights, as a pattern


class SmallConvNet(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, a global average, one linear layer.

    With its defaults 61,050 weights, and 1.1 million multiply-adds an image of 28x28.

    Args:
        num_labels: classes. Default: 10.
        in_channels: of the images. Default: 1.
        widths: channels of the convolutions. Default: 16, 32, 64, 64.
        strides: one for each. Default: 2, 2, 2, 1.
    """

    def __init__(
        self,
        num_labels: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64, 64),
        strides: Sequence[int] = (2, 2, 2, 1),
    ) -> None:
        super().__init__()
        blocks = []
        for width, stride in zip(widths, strides, strict=True):
            block = OrderedDict(
                convolution=nn.Conv2d(
                    in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False
                ),
                normalization=nn.BatchNorm2d(width),
                activation=nn.ReLU(),
            )
            blocks.append(nn.Sequential(block))
            in_channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(in_channels, num_labels)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Return (batch, widths[-1]) for pixels (batch, in_channels, height, width)."""
        return self.blocks(pixel_values).mean(dim=(2, 3))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Return `logits` (batch, num_labels), and with labels (batch,) the mean `loss`, too."""
        logits = self.classifier(self.features(pixel_values))
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}
