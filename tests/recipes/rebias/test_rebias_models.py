"""ReBias's networks: sizes by the published layers, what g can see, and what AdamP projects."""

import pytest
import torch
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from hf_adamp import probe
from recipes.rebias.configuration_rebias import BagNetConfig, StackedConvConfig
from recipes.rebias.game import extract
from recipes.rebias.modeling_rebias import (
    BagNetForImageClassification,
    StackedConvForImageClassification,
)


@pytest.mark.parametrize("kernel", [7, 1])
def test_stacked_conv_has_the_published_weights(kernel):
    model = StackedConvForImageClassification(StackedConvConfig(kernel_size=kernel, num_labels=10))
    pairs = ((3, 16), (16, 32), (32, 64), (64, 128))
    convolutions = sum(narrow * wide * kernel**2 + 3 * wide for narrow, wide in pairs)
    assert model.num_parameters() == convolutions + 128 * 10 + 10


def test_bagnet18_has_the_published_weights():
    model = BagNetForImageClassification(BagNetConfig(num_labels=9))
    stem = 3 * 64 + 64 * 64 * 9 + 2 * 64
    # Stage by stage: two convolutions of each of two blocks, the shortcut, a norm behind each.
    stages = 64 * 64 * (9 + 1 + 1 + 1) + (64 * 64 + 2 * 64) + 4 * 2 * 64
    for narrow, wide in ((64, 128), (128, 256), (256, 512)):
        stages += narrow * wide + 3 * wide * wide + narrow * wide + 5 * 2 * wide
    assert model.num_parameters() == stem + stages + 512 * 9 + 9


def test_resnet18_has_the_published_weights():
    shape = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    config = ResNetConfig(layer_type="basic", num_labels=9, **shape)
    # 11,689,512 with a thousand classes, as everywhere.
    expected = 11_689_512 - 513 * (1000 - 9)
    assert ResNetForImageClassification(config).num_parameters() == expected


def test_bagnet18_sees_patches_of_five_pixels():
    model = BagNetForImageClassification(
        BagNetConfig(hidden_sizes=(8, 8, 8, 8), embedding_size=8, num_labels=9)
    ).eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    last = model(image, output_hidden_states=True).hidden_states[-1]
    place = last.shape[-1] // 2
    last[0, :, place, place].sum().backward()
    rows, columns = (image.grad[0].abs().sum(0).sum(axis).nonzero() for axis in (1, 0))
    assert rows.max() - rows.min() < 5
    assert columns.max() - columns.min() < 5


def test_stacked_conv_with_kernel_one_cannot_see_where_pixels_are():
    model = StackedConvForImageClassification(StackedConvConfig(kernel_size=1)).eval()
    image = torch.randn(2, 3, 8, 8)
    shuffled = image.flatten(2)[..., torch.randperm(64)].view_as(image)
    assert torch.allclose(model(image).logits, model(shuffled).logits, atol=1e-5)


def test_networks_are_initialized_by_what_leaves_a_convolution():
    model = StackedConvForImageClassification(StackedConvConfig())
    last = model.features[3][0].weight
    assert last.std().item() == pytest.approx((2 / (128 * 49)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("kind", ["stacked", "bagnet", "resnet"])
def test_extract_returns_the_features_that_the_last_layer_sees(kind):
    models = {
        "stacked": lambda: StackedConvForImageClassification(StackedConvConfig(channels=(4, 6))),
        "bagnet": lambda: BagNetForImageClassification(
            BagNetConfig(embedding_size=4, hidden_sizes=(4, 4, 6, 6))
        ),
        "resnet": lambda: ResNetForImageClassification(
            ResNetConfig(layer_type="basic", embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1])
        ),
    }
    model = models[kind]().eval()
    linear = model.classifier[-1] if kind == "resnet" else model.classifier
    logits, features = extract(model, torch.randn(3, 3, 32, 32))
    assert torch.allclose(linear(features), logits, atol=1e-6)


def test_all_convolutions_of_stacked_conv_are_scale_invariant():
    model = StackedConvForImageClassification(StackedConvConfig(kernel_size=3, channels=(4, 6)))
    batch = {"pixel_values": torch.randn(8, 3, 8, 8), "labels": torch.arange(8) % 2}
    assert probe(model, batch).granularities == {
        "features.0.0.weight": "row",
        "features.1.0.weight": "row",
        "classifier.weight": None,
    }


def test_networks_are_saved_and_loaded_by_the_auto_class(tmp_path):
    model = StackedConvForImageClassification(StackedConvConfig(channels=(4, 6), kernel_size=3))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(image).logits, model.eval()(image).logits)


def test_configurations_refuse_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        StackedConvConfig(kernel_size=4)
    with pytest.raises(ValueError, match="one number a stage"):
        BagNetConfig(depths=(2, 2))
