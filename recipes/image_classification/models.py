"""The networks of the paper's ImageNet tables by name, built to be trained from scratch.

    model = build_model("resnet18", num_labels=1000)

ResNets are Transformers' own. MobileNetV2, EfficientNet and ReXNet are timm's, through the wrapper
of Transformers, whose own MobileNetV2 and EfficientNet carry TensorFlow's momentum of BatchNorm
(0.997 and 0.99) over to torch, where it makes running statistics those of the last batch. They also
start with filters of a standard deviation of 0.02, beside which BatchNorm's eps of 1e-3 is no
longer small, so that the filters are not scale-invariant at first. Transformers has no ReXNet.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.utils import is_timm_available, is_torchvision_available

from recipes.common.small_convnet import SmallConvNet

__all__ = ["ARCHITECTURES", "SMALL", "Architecture", "build_model"]

SMALL = "small"


class Architecture(NamedTuple):
    """One network.

    Attributes:
        weights: how many it has with 1,000 labels.
        timm: its name in timm, or None for one of Transformers' ResNets.
        options: of the ResNet's configuration.
        smallest: least side of an image in pixels that leaves a position after all strides.
    """

    weights: int
    timm: str | None = None
    options: Mapping[str, Any] = {}
    smallest: int = 32


_RESNET18 = {
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
}
ARCHITECTURES: Mapping[str, Architecture] = {
    "resnet18": Architecture(11_689_512, options=_RESNET18),
    "resnet50": Architecture(25_557_032),
    "mobilenet_v2": Architecture(3_504_872, "mobilenetv2_100"),
    "efficientnet_b0": Architecture(5_288_548, "efficientnet_b0"),
    "efficientnet_b1": Architecture(7_794_184, "efficientnet_b1"),
    "efficientnet_b2": Architecture(9_109_994, "efficientnet_b2"),
    "efficientnet_b3": Architecture(12_233_232, "efficientnet_b3"),
    "rexnet_1.0": Architecture(4_796_873, "rexnet_100"),
    "rexnet_1.3": Architecture(7_557_091, "rexnet_130"),
}


def build_model(
    name: str, num_labels: int, *, dropout: float = 0.0, drop_path: float = 0.0
) -> nn.Module:
    """Build a network with random weights, or load one to fine-tune.

    Args:
        name: a key of `ARCHITECTURES`; `SMALL`, for grey images of 28x28; an id of the Hub or a
            folder with an image classifier, which is fine-tuned with a new classifier.
        num_labels: classes.
        dropout: before the classifier, of timm's networks. Default: 0.
        drop_path: share of residual branches left out, of timm's networks. Default: 0.

    Raises:
        ValueError: the name is unknown, or the network has no dropout.
        ModuleNotFoundError: timm or torchvision is missing, which it imports.
    """
    if name in ARCHITECTURES and ARCHITECTURES[name].timm is not None:
        return _build_timm(name, num_labels, {"drop_rate": dropout, "drop_path_rate": drop_path})
    if dropout or drop_path:
        raise ValueError(
            f"dropout={dropout}, drop_path={drop_path} are of timm's networks; {name} has neither."
        )
    if name == SMALL:
        return SmallConvNet(num_labels)
    if name in ARCHITECTURES:
        config = ResNetConfig(num_labels=num_labels, **ARCHITECTURES[name].options)
        return ResNetForImageClassification(config)
    if "/" not in name:
        raise ValueError(
            f"model={name!r} is unknown; known models: {SMALL}, {', '.join(ARCHITECTURES)}, or an "
            "id of the Hub or a folder, with a slash in its name."
        )
    return AutoModelForImageClassification.from_pretrained(
        name, num_labels=num_labels, ignore_mismatched_sizes=True
    )


def _build_timm(name: str, num_labels: int, options: dict[str, Any]) -> PreTrainedModel:
    """Wrap timm's network, with timm's initial weights."""
    if not (is_timm_available() and is_torchvision_available()):
        raise ModuleNotFoundError(
            f"{name} is timm's, which needs torchvision: pip install 'hf-adamp[vision]'"
        )
    import timm  # noqa: PLC0415 -- of the full size only
    from transformers import (  # noqa: PLC0415
        TimmWrapperConfig,
        TimmWrapperForImageClassification,
    )

    architecture = ARCHITECTURES[name].timm
    config = TimmWrapperConfig(
        architecture=architecture, num_labels=num_labels, model_args=dict(options)
    )
    model = TimmWrapperForImageClassification(config)
    # The wrapper gives linear layers and convolutions weights of its own, with a deviation of 0.02.
    initial = timm.create_model(architecture, num_classes=num_labels, **options)
    model.timm_model.load_state_dict(initial.state_dict())
    return model
