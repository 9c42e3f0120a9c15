"""Configuration of CenterNet: a ResNet, three steps up, three heads."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig, ResNetConfig

__all__ = ["CenterNetConfig"]


class CenterNetConfig(PretrainedConfig):
    """Settings of `CenterNetForObjectDetection`; the defaults are those of the published resdcn18.

    Args:
        backbone_config: a ResNet, as `ResNetConfig` or its dictionary. Default: None, ResNet-18.
        neck_channels: width of each step up, which doubles the map's sides. From a ResNet's 32nd of
            the image, three steps lead to a fourth. Default: (256, 128, 64).
        head_channels: width of each head's hidden layer. Default: 64.
        deformable: whether each step up begins with a deformable convolution, as published, or a
            plain one. Default: True.
        max_detections: boxes that are kept of an image. Default: 100.
        size_weight: of the size's loss beside the heat map's. Default: 0.1.
        offset_weight: of the offset's. Default: 1.0.

    Raises:
        ValueError: there is no step up.

    Source: Zhou et al., "Objects as Points", 2019, https://github.com/xingyizhou/CenterNet
    """

    model_type = "centernet"
    sub_configs = {"backbone_config": ResNetConfig}  # noqa: RUF012  as Transformers declares it

    def __init__(
        self,
        backbone_config: ResNetConfig | dict[str, Any] | None = None,
        neck_channels: Sequence[int] = (256, 128, 64),
        head_channels: int = 64,
        deformable: bool = True,
        max_detections: int = 100,
        size_weight: float = 0.1,
        offset_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if not neck_channels:
            raise ValueError("neck_channels=() must have at least one step up.")
        if backbone_config is None:
            backbone_config = {
                **{"layer_type": "basic", "embedding_size": 64},
                **{"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
            }
        if isinstance(backbone_config, dict):
            backbone_config = ResNetConfig(**backbone_config)
        self.backbone_config = backbone_config
        self.neck_channels = list(neck_channels)
        self.head_channels = head_channels
        self.deformable = deformable
        self.max_detections = max_detections
        self.size_weight = size_weight
        self.offset_weight = offset_weight
        super().__init__(**kwargs)


AutoConfig.register(CenterNetConfig.model_type, CenterNetConfig, exist_ok=True)
CenterNetConfig.register_for_auto_class()
