"""SSD300 with a VGG-16 whose convolutions have BatchNorm, by torchvision, where that is installed.

torchvision's releases fit one release of torch each, so it is no dependency of this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SsdForObjectDetection"]

SIDE = 300
ASPECT_RATIOS = ([2], [2, 3], [2, 3], [2, 3], [2], [2])
SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)  # torchvision's, for COCO
STEPS = (8, 16, 32, 64, 100, 300)


class SsdForObjectDetection(nn.Module):
    """torchvision's SSD behind the interface of Transformers' detectors.

    Args:
        num_labels: classes, without the background.
        pretrained: whether the VGG-16 begins with torchvision's ImageNet weights, a download.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """

    def __init__(self, num_labels: int, *, pretrained: bool = False) -> None:
        super().__init__()
        try:
            from torchvision.models import VGG16_BN_Weights, vgg16_bn  # noqa: PLC0415
            from torchvision.models.detection import ssd  # noqa: PLC0415
            from torchvision.models.detection.anchor_utils import (  # noqa: PLC0415
                DefaultBoxGenerator,
            )
        except ImportError as error:
            raise ModuleNotFoundError(
                "model=ssd300_vgg16_bn needs the torchvision that fits your torch: see "
                "https://github.com/pytorch/vision#installation"
            ) from error
        weights = VGG16_BN_Weights.IMAGENET1K_V1 if pretrained else None
        # The extractor is private there; the public builder knows VGG-16 without BatchNorm only.
        backbone = ssd._vgg_extractor(vgg16_bn(weights=weights), False, 5)
        anchors = DefaultBoxGenerator(
            [list(ratios) for ratios in ASPECT_RATIOS], scales=list(SCALES), steps=list(STEPS)
        )
        # Pixels come normalized and in the right size already.
        self.ssd = ssd.SSD(
            *(backbone, anchors, (SIDE, SIDE), num_labels + 1),
            image_mean=[0.0, 0.0, 0.0],
            image_std=[1.0, 1.0, 1.0],
        )

    def forward(
        self, pixel_values: Tensor, labels: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Any]:
        """Return `loss` in training, and `detections` in evaluation; as shares of sides.

        Args:
            pixel_values: (images, 3, 300, 300).
            labels: for each image `class_labels` (n,) and `boxes` (n, 4), centre x and y, width and
                height as shares of its sides.
        """
        height, width = pixel_values.shape[-2:]
        sides = pixel_values.new_tensor([width, height, width, height])
        if not self.training:
            return {
                "detections": [
                    {**found, "labels": found["labels"] - 1, "boxes": found["boxes"] / sides}
                    for found in self.ssd(list(pixel_values))
                ]
            }
        targets = []
        for of_image in labels or ():
            centres, sizes = of_image["boxes"].split(2, dim=-1)
            boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1) * sides
            # Number 0 is the background.
            targets.append({"boxes": boxes, "labels": of_image["class_labels"] + 1})
        losses = self.ssd(list(pixel_values), targets)
        return {"loss": sum(losses.values())}

    def detect(self, output: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Return each image's detections: scores, labels, boxes as shares of its sides."""
        found: list[dict[str, Tensor]] = output["detections"]
        return found
