"""Images to unit vectors, and the loss that pulls those of a class together, in one module.

Losses and mining are those of pytorch-metric-learning: Proxy-Anchor (Kim et al., CVPR 2020,
https://github.com/tjddus9597/Proxy-Anchor-CVPR2020) and the triplet loss with semi-hard mining
(Schroff et al., "FaceNet", CVPR 2015).
"""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss, TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel, ResNetModel
from transformers.utils import ModelOutput

from recipes.common.small_convnet import CONVOLUTIONS, SmallConvNet

from .configuration_embedder import ImageEmbedderConfig

__all__ = ["CONVOLUTIONS", "PROXIES", "EmbedderOutput", "ImageEmbedder", "SemiHardTriplets"]

PROXIES = "objective.proxies"  # the parameter's name; one row a class


@dataclass
class EmbedderOutput(ModelOutput):
    """What `ImageEmbedder` returns.

    Attributes:
        loss: with labels, the metric loss of the batch.
        embeddings: unit vectors, float32 (images, embedding_size).
    """

    loss: Tensor | None = None
    embeddings: Tensor | None = None


class SemiHardTriplets(nn.Module):
    """The triplet loss over the semi-hard triplets of a batch, with Euclidean distances.

    A triplet is semi-hard if its negative is further from the anchor than its positive, by less
    than the margin. The loss is the mean over those; a batch without one has the loss 0.

    Args:
        margin: by which a negative should be further away.
    """

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.miner = TripletMarginMiner(margin=margin, type_of_triplets="semihard")
        self.loss = TripletMarginLoss(margin=margin)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (images, size), whose classes are labels (images,)."""
        loss: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
        return loss


class ImageEmbedder(PreTrainedModel):
    """A convolutional network, average plus maximum over places, a linear layer, unit length.

    Args:
        config: sizes and loss.

    Example:
        ```python
        model = ImageEmbedder(ImageEmbedderConfig(num_classes=10))
        embeddings = model(torch.randn(2, 1, 32, 32)).embeddings  # (2, 512)
        ```

    Source: the ResNet-50 of https://github.com/tjddus9597/Proxy-Anchor-CVPR2020
    """

    config_class = ImageEmbedderConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ImageEmbedderConfig) -> None:
        super().__init__(config)
        self.backbone: nn.Module
        if config.backbone_config is None:
            small = SmallConvNet(1, config.num_channels, config.widths, config.strides)
            self.backbone, width = small.blocks, config.widths[-1]
        else:
            self.backbone = ResNetModel(config.backbone_config)
            width = config.backbone_config.hidden_sizes[-1]
        self.embedding = nn.Linear(width, config.embedding_size)
        self.objective: nn.Module | None = None
        if config.loss == "triplet":
            self.objective = SemiHardTriplets(config.margin)
        elif config.num_classes:
            self.objective = ProxyAnchorLoss(
                config.num_classes, config.embedding_size, margin=config.margin, alpha=config.alpha
            )
        if config.freeze_batch_norms:
            for norm in self.batch_norms():
                for parameter in norm.parameters():
                    parameter.requires_grad_(False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Begin as published: Kaiming by what leaves the layer for embedding and proxies."""
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            nn.init.zeros_(module.bias)
        elif isinstance(module, ProxyAnchorLoss):
            nn.init.kaiming_normal_(module.proxies, mode="fan_out")

    def batch_norms(self) -> list[nn.Module]:
        """Return the backbone's BatchNorms."""
        return [m for m in self.backbone.modules() if isinstance(m, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> "ImageEmbedder":
        """Set the mode of all but frozen BatchNorms, which stay in evaluation."""
        super().train(mode)
        if self.config.freeze_batch_norms:
            for norm in self.batch_norms():
                norm.eval()
        return self

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Return unit vectors, float32 (images, embedding_size)."""
        features: Any = self.backbone(pixel_values)
        if not isinstance(features, Tensor):
            features = features.last_hidden_state
        pooled = features.mean(dim=(-2, -1)) + features.amax(dim=(-2, -1))
        return functional.normalize(self.embedding(pooled).float(), dim=-1)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> EmbedderOutput | tuple[Tensor, ...]:
        """Embed images.

        Args:
            pixel_values: (images, channel, height, width).
            labels: class numbers, (images,). Default: None, no loss.
            return_dict: False returns a tuple. Default: None, an output object.

        Raises:
            ValueError: there are labels, but no class to have a proxy.
        """
        embeddings = self.embed(pixel_values)
        loss = None
        if labels is not None:
            if self.objective is None:
                raise ValueError(
                    "num_classes=0 leaves no proxy for a label; set it, or labels=None."
                )
            # Distances lose too much in 16 bits, and proxies would be cast to them.
            with torch.autocast(embeddings.device.type, enabled=False):
                loss = self.objective(embeddings, labels)
        output = EmbedderOutput(loss=loss, embeddings=embeddings)
        return output.to_tuple() if return_dict is False else output


AutoModel.register(ImageEmbedderConfig, ImageEmbedder, exist_ok=True)
ImageEmbedder.register_for_auto_class("AutoModel")
