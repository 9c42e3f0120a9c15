"""CenterNet: objects as points, found as peaks of a heat map, without anchors or suppression.

Zhou, Wang and Krähenbühl, "Objects as Points", 2019, https://github.com/xingyizhou/CenterNet
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoBackbone,
    AutoModelForObjectDetection,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from .configuration_centernet import CenterNetConfig
from .deformable import DeformableConv2d
from .targets import Targets, encode

__all__ = ["CenterNetForObjectDetection", "CenterNetOutput", "decode", "focal_loss"]

FIRST_HEAT = -2.19  # bias of the heat map: a tenth everywhere, as published
CLEAREST = 1e-4  # probabilities are kept this far from 0 and 1
ALPHA, BETA = 2, 4  # of the focal loss
REGRESSION_STD = 1e-3  # of the first weights of the heads for size and offset


@dataclass
class CenterNetOutput(ModelOutput):
    """Maps a fourth as large as the image.

    Attributes:
        loss: with labels, the weighted sum of the three losses.
        logits: of each class's centres, (images, classes, height, width).
        sizes: width and height in cells of the box whose centre a cell is, (images, 2, …).
        offsets: where the centre lies in the cell, x and y, (images, 2, …).
        losses: with labels, the three losses without their weights: heat, size, offset.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    sizes: Tensor | None = None
    offsets: Tensor | None = None
    losses: dict[str, Tensor] | None = None


def focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Return the penalty-reduced focal loss of all cells, over the number of centres.

    Args:
        logits: of any shape.
        heat: targets of that shape: 1 at centres, below 1 elsewhere.

    Source: "Objects as Points", equation 1, with α = 2 and β = 4; of images without a centre, the
    sum is not divided.
    """
    chance = logits.float().sigmoid().clamp(CLEAREST, 1 - CLEAREST)
    centre = heat.eq(1)
    at_centres = chance.log() * (1 - chance).pow(ALPHA)
    elsewhere = (1 - chance).log() * chance.pow(ALPHA) * (1 - heat).pow(BETA)
    return -torch.where(centre, at_centres, elsewhere).sum() / centre.sum().clamp(min=1)


def decode(output: CenterNetOutput, count: int) -> list[dict[str, Tensor]]:
    """Return each image's detections, the surest first.

    A centre is a cell that no neighbour of its class exceeds, which takes the place of
    non-maximum suppression.

    Args:
        output: the maps of some images.
        count: how many detections of an image are returned, at most.

    Returns:
        `scores` (n,), `labels` (n,) and `boxes` (n, 4), left, top, right and bottom as shares of
        the image's sides.
    """
    chances = output.logits.float().sigmoid()
    peaks = functional.max_pool2d(chances, 3, stride=1, padding=1) == chances
    classes, height, width = chances.shape[1:]
    count = min(count, classes * height * width)
    scores, places = (chances * peaks).flatten(1).topk(count)
    cells = places % (height * width)
    at = cells.unsqueeze(1).expand(-1, 2, -1)
    sizes, offsets = (
        maps.float().flatten(2).gather(2, at).transpose(1, 2)
        for maps in (output.sizes, output.offsets)
    )
    corners = torch.stack([cells % width, cells // width], dim=-1)
    sides = sizes.new_tensor([width, height])
    centres, sizes = (corners + offsets) / sides, sizes / sides
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
    labels = places // (height * width)
    return [
        {"scores": s, "labels": l, "boxes": b}
        for s, l, b in zip(scores, labels, boxes, strict=True)  # noqa: E741
    ]


class BilinearUp(nn.ConvTranspose2d):
    """A transposed convolution that doubles the map's sides."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, stride=2, padding=1, bias=False)

    def reset_parameters(self) -> None:
        """Begin as published, with interpolation into the first output of each input only."""
        super().reset_parameters()
        middle = (self.kernel_size[0] - 1) / 2
        line = 1 - (torch.arange(self.kernel_size[0]) - middle).abs() / 2
        with torch.no_grad():
            self.weight[:, 0] = line[:, None] * line


class FaintConv2d(nn.Conv2d):
    """A convolution that begins with almost nothing, so that sizes and offsets do."""

    def reset_parameters(self) -> None:
        """Draw small weights, as published."""
        nn.init.normal_(self.weight, std=REGRESSION_STD)
        nn.init.zeros_(self.bias)


class HeatConv2d(nn.Conv2d):
    """A convolution of one place that begins with a chance of a tenth everywhere."""

    def reset_parameters(self) -> None:
        """Lower the bias, as published."""
        super().reset_parameters()
        nn.init.constant_(self.bias, FIRST_HEAT)


def step_up(narrow: int, wide: int, *, deformable: bool) -> nn.Sequential:
    """Return a convolution and a transposed one, each with BatchNorm and ReLU."""
    conv: nn.Module = (
        DeformableConv2d(narrow, wide)
        if deformable
        else nn.Conv2d(narrow, wide, 3, padding=1, bias=False)
    )
    first = (conv, nn.BatchNorm2d(wide), nn.ReLU())
    return nn.Sequential(*first, BilinearUp(wide), nn.BatchNorm2d(wide), nn.ReLU())


def regression_head(narrow: int, hidden: int) -> nn.Sequential:
    """Return a hidden layer of 3 × 3, and two numbers a place."""
    first = FaintConv2d(narrow, hidden, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), FaintConv2d(hidden, 2, 1))


class CenterNetForObjectDetection(PreTrainedModel):
    """A ResNet, three steps up to a fourth of the image, and heads for centre, size and offset.

    All convolutions but the heads' and the steering ones feed a BatchNorm; the transposed ones are
    scale-invariant as a whole, since their rows belong to inputs.

    Args:
        config: sizes and loss weights; `num_labels` as in any model.

    Example:
        ```python
        model = CenterNetForObjectDetection(CenterNetConfig(num_labels=80))
        output = model(torch.randn(2, 3, 512, 512))
        detections = model.detect(output)  # boxes as shares of the image's sides
        ```
    """

    config_class = CenterNetConfig
    main_input_name = "pixel_values"
    _no_split_modules = ("ResNetStage",)

    def __init__(self, config: CenterNetConfig) -> None:
        super().__init__(config)
        config.backbone_config.out_features = [f"stage{len(config.backbone_config.depths)}"]
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        widths = [config.backbone_config.hidden_sizes[-1], *config.neck_channels]
        self.neck = nn.Sequential(
            *(
                step_up(narrow, wide, deformable=config.deformable)
                for narrow, wide in pairwise(widths)
            )
        )
        hidden = config.head_channels
        self.heat = nn.Sequential(
            *(nn.Conv2d(widths[-1], hidden, 3, padding=1), nn.ReLU()),
            HeatConv2d(hidden, config.num_labels, 1),
        )
        self.size = regression_head(widths[-1], hidden)
        self.offset = regression_head(widths[-1], hidden)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Let every layer begin its own way, which is the published one, not Transformers'."""
        kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, DeformableConv2d)
        if isinstance(module, kinds):
            module.reset_parameters()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        return_dict: bool | None = None,
    ) -> CenterNetOutput | tuple[Tensor, ...]:
        """Look for objects.

        Args:
            pixel_values: (images, channel, height, width), sides divisible by 32.
            labels: for each image `class_labels` (n,) and `boxes` (n, 4), centre x and y, width and
                height as shares of its sides, as Transformers' detectors take them. Default: None,
                no loss.
            return_dict: False returns a tuple. Default: None, an output object.
        """
        features = self.neck(self.backbone(pixel_values).feature_maps[-1])
        output = CenterNetOutput(
            logits=self.heat(features), sizes=self.size(features), offsets=self.offset(features)
        )
        if labels is not None:
            shape = tuple(output.logits.shape[1:])
            targets = [encode(of["boxes"], of["class_labels"], shape) for of in labels]
            output.losses = self._losses(output, targets)
            output.loss = (
                output.losses["heat"]
                + self.config.size_weight * output.losses["size"]
                + self.config.offset_weight * output.losses["offset"]
            )
        return output.to_tuple() if return_dict is False else output

    def _losses(self, output: CenterNetOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the focal loss, and the mean absolute errors of sizes and offsets at centres."""
        losses = {"heat": focal_loss(output.logits, torch.stack([of.heat for of in targets]))}
        for name, maps in (("size", output.sizes), ("offset", output.offsets)):
            found = torch.cat(
                [image.flatten(1)[:, of.cells].T for image, of in zip(maps, targets, strict=True)]
            ).float()
            wanted = torch.cat([getattr(of, f"{name}s") for of in targets])
            losses[name] = (found - wanted).abs().sum() / max(wanted.numel(), 1)
        return losses

    def detect(self, output: CenterNetOutput) -> list[dict[str, Tensor]]:
        """Return each image's detections; see `decode`."""
        return decode(output, self.config.max_detections)


AutoModelForObjectDetection.register(CenterNetConfig, CenterNetForObjectDetection, exist_ok=True)
CenterNetForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
