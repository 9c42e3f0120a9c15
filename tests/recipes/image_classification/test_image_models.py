import pytest
import torch
from transformers.utils import is_timm_available, is_torchvision_available

from recipes.image_classification.models import ARCHITECTURES, SMALL, build_model

needs_timm = pytest.mark.skipif(
    not (is_timm_available() and is_torchvision_available()),
    reason="needs timm and torchvision (make test-vision)",
)
names = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_timm if architecture.timm else ())
        for name, architecture in ARCHITECTURES.items()
    ],
)


@names
def test_network_has_the_published_number_of_weights(name):
    model = build_model(name, 1000)
    assert sum(p.numel() for p in model.parameters()) == ARCHITECTURES[name].weights


@names
def test_network_starts_with_filters_that_batch_norm_makes_scale_invariant(name):
    model = build_model(name, 10)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert {norm.eps for norm in norms} == {1e-5}
    filters = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    # Of 0.02, as Transformers starts MobileNetV2 and EfficientNet, none is left.
    assert max(abs(f.weight.std().item() / 0.02 - 1) for f in filters[:4]) > 0.2
    fan_out = filters[0].weight[:, 0].numel() / filters[0].groups
    assert filters[0].weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


@names
def test_network_trains_with_any_number_of_labels(name):
    model = build_model(name, 7)
    output = model(pixel_values=torch.randn(2, 3, 64, 64))
    assert output.logits.shape == (2, 7)


@needs_timm
def test_network_of_timm_has_the_dropout_asked_for():
    model = build_model("efficientnet_b0", 10, dropout=0.3, drop_path=0.1)
    assert model.timm_model.drop_rate == 0.3


def test_small_network_takes_grey_images():
    output = build_model(SMALL, 10)(torch.randn(2, 1, 28, 28))
    assert output["logits"].shape == (2, 10)


def test_unknown_network_is_refused():
    with pytest.raises(ValueError, match="model='resnet34' is unknown; known models: small"):
        build_model("resnet34", 10)


def test_network_without_dropout_refuses_it():
    with pytest.raises(ValueError, match="resnet18 has neither"):
        build_model("resnet18", 10, dropout=0.2)


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_missing_timm_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"hf-adamp\[vision\]"):
        build_model("rexnet_1.0", 10)
