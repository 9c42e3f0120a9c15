"""Sizes and loss of `ImageEmbedder`, as a configuration of Transformers."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig, ResNetConfig

__all__ = ["LOSSES", "ImageEmbedderConfig"]

LOSSES = ("proxy_anchor", "triplet")


class ImageEmbedderConfig(PretrainedConfig):
    """Settings of `ImageEmbedder`; the defaults are the published ones.

    Args:
        backbone_config: of Transformers' ResNet. Default: None, the small network of `widths`.
        widths: channels of the small network's convolutions. Default: (16, 32, 64, 96).
        strides: one for each. Default: (2, 2, 2, 1).
        num_channels: of the small network's images. Default: 1.
        embedding_size: length of an embedding. Default: 512.
        loss: "proxy_anchor", or "triplet" with semi-hard mining. Default: "proxy_anchor".
        margin: of either loss. Default: 0.1.
        alpha: scale of Proxy-Anchor. Default: 32.
        num_classes: proxies; 0 makes none. Default: 0.
        freeze_batch_norms: whether BatchNorms keep their statistics, gain and bias. Default: False.

    Raises:
        ValueError: the loss is unknown, or has no class to make a proxy for; widths and strides are
            not equally many.

    Source: Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020.
    """

    model_type = "image_embedder"
    sub_configs = {"backbone_config": ResNetConfig}  # noqa: RUF012  as Transformers declares it

    def __init__(
        self,
        backbone_config: ResNetConfig | dict[str, Any] | None = None,
        widths: Sequence[int] = (16, 32, 64, 96),
        strides: Sequence[int] = (2, 2, 2, 1),
        num_channels: int = 1,
        embedding_size: int = 512,
        loss: str = "proxy_anchor",
        margin: float = 0.1,
        alpha: float = 32.0,
        num_classes: int = 0,
        freeze_batch_norms: bool = False,
        **kwargs: Any,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is unknown; known losses: {', '.join(LOSSES)}.")
        if len(widths) != len(strides):
            raise ValueError(f"widths={widths} and strides={strides} must be equally many.")
        if isinstance(backbone_config, dict):
            backbone_config = ResNetConfig(**backbone_config)
        self.backbone_config = backbone_config
        self.widths = list(widths)
        self.strides = list(strides)
        self.num_channels = num_channels
        self.embedding_size = embedding_size
        self.loss = loss
        self.margin = margin
        self.alpha = alpha
        self.num_classes = num_classes
        self.freeze_batch_norms = freeze_batch_norms
        super().__init__(**kwargs)


AutoConfig.register(ImageEmbedderConfig.model_type, ImageEmbedderConfig, exist_ok=True)
ImageEmbedderConfig.register_for_auto_class()
