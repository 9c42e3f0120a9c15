"""The Wide-ResNet: sizes of the published table, and what AdamP finds in it."""

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_adamp import probe
from recipes.adversarial_training.configuration_wide_resnet import WideResNetConfig
from recipes.adversarial_training.modeling_wide_resnet import WideResNetForImageClassification


def count(depth, widen):
    """Weights of a Wide-ResNet with ten classes, added up from the paper's table 1."""
    blocks, width, total = (depth - 4) // 6, 16, 3 * 9 * 16
    for stage in range(3):
        out = 16 * 2**stage * widen
        total += 2 * width + 9 * width * out + 2 * out + 9 * out * out + width * out
        total += (blocks - 1) * (2 * 2 * out + 2 * 9 * out * out)
        width = out
    return total + 2 * width + 10 * width + 10


@pytest.mark.parametrize(
    ("depth", "widen", "published"), [(28, 10, 36.5), (34, 10, 46.2), (16, 8, 11.0), (40, 4, 8.9)]
)
def test_wide_resnet_has_the_published_number_of_weights(depth, widen, published):
    with torch.device("meta"):
        model = WideResNetForImageClassification(
            WideResNetConfig(depth=depth, widen_factor=widen, num_labels=10)
        )
    assert model.num_parameters() == count(depth, widen)
    assert round(model.num_parameters() / 1e6, 1) == published


def small(**options):
    return WideResNetForImageClassification(
        WideResNetConfig(depth=10, widen_factor=1, num_labels=4, **options)
    )


def test_wide_resnet_has_depth_convolutions_on_its_longest_path():
    model = WideResNetForImageClassification(WideResNetConfig(depth=28, widen_factor=2))
    threes = [m for m in model.modules() if getattr(m, "kernel_size", None) == (3, 3)]
    shortcuts = [m for m in model.modules() if getattr(m, "kernel_size", None) == (1, 1)]
    # And the linear layer; the paper counts the shortcut convolution of each stage as well.
    assert (len(threes), len(shortcuts)) == (28 - 4 + 1, 3)


def test_wide_resnet_normalizes_images_inside():
    torch.manual_seed(0)
    plain = small(image_mean=[0.0] * 3, image_std=[1.0] * 3).eval()
    inside = small(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).eval()
    weights = {n: w for n, w in plain.state_dict().items() if n not in {"mean", "std"}}
    inside.load_state_dict(weights, strict=False)
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(
            inside(images).logits, plain((images - mean) / std).logits, rtol=1e-5, atol=1e-5
        )


def test_wide_resnet_comes_back_from_a_folder(tmp_path):
    model = small().eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)


def test_first_convolution_of_each_block_is_scale_invariant():
    model = small()
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    report = probe(model, {"pixel_values": images, "labels": labels})
    invariant = {name for name, kind in report.granularities.items() if kind}
    assert {f"blocks.{number}.conv1.weight" for number in range(3)} <= invariant
    assert "classifier.weight" not in invariant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "depth=20 must be 6·n"),
        ({"widen_factor": 0}, "widen_factor=0 must be at least 1"),
        ({"strides": [1, 2]}, "must be three numbers"),
        ({"dropout": 1.0}, "dropout=1.0 must be in"),
        ({"num_channels": 1}, "one value for each of num_channels=1"),
        ({"image_std": [0.1, 0.0, 0.1]}, "must be above 0: it divides"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WideResNetConfig(**options)
