"""CenterNet's parts, each against another way to compute the same; and its weights."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForObjectDetection, ResNetConfig

from hf_adamp import probe
from recipes.object_detection.configuration_centernet import CenterNetConfig
from recipes.object_detection.deformable import DeformableConv2d
from recipes.object_detection.modeling_centernet import (
    CenterNetForObjectDetection,
    CenterNetOutput,
    decode,
    focal_loss,
)
from recipes.object_detection.targets import encode, gaussian_radius, heat_map


def tiny(**options):
    backbone = ResNetConfig(
        layer_type="basic", embedding_size=4, hidden_sizes=[4, 6, 6, 8], depths=[1, 1, 1, 1]
    )
    config = CenterNetConfig(
        backbone, neck_channels=(6, 4, 4), head_channels=4, num_labels=3, **options
    )
    return CenterNetForObjectDetection(config)


def labels(*boxes):
    """One image's labels of (class, centre x, centre y, width, height)."""
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    return {"class_labels": table[:, 0].long(), "boxes": table[:, 1:]}


def test_focal_loss_equals_a_sum_cell_by_cell():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(2, 3, 4, 5)) * 3
    heat = draw.random((2, 3, 4, 5)) * 0.99
    heat[0, 1, 2, 3] = heat[1, 0, 0, 0] = heat[1, 2, 3, 4] = 1
    total = 0.0
    for logit, target in zip(logits.ravel(), heat.ravel(), strict=True):
        chance = 1 / (1 + math.exp(-logit))
        if target == 1:
            total -= (1 - chance) ** 2 * math.log(chance)
        else:
            total -= (1 - target) ** 4 * chance**2 * math.log(1 - chance)
    found = focal_loss(torch.from_numpy(logits), torch.from_numpy(heat))
    assert found.item() == pytest.approx(total / 3, rel=1e-5)


def test_focal_loss_of_an_image_without_objects_is_the_sum():
    logits = torch.zeros(1, 1, 2, 2)
    expected = 4 * 0.25 * math.log(2)
    assert focal_loss(logits, torch.zeros_like(logits)).item() == pytest.approx(expected)


def test_focal_loss_stays_finite_where_sigmoids_saturate():
    logits = torch.tensor([[[[200.0, -200.0]]]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[[[0.0, 1.0]]]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_gaussian_radius_equals_the_published_roots():
    """Larger roots of three quadratic equations, without the division by the first coefficient."""
    sizes = np.array([[3.2, 8.9], [10, 10], [1, 1], [40, 17], [127.5, 0.4]])
    expected = []
    for width, height in np.ceil(sizes):
        equations = (
            (1, -(width + height), width * height * 0.3 / 1.7),
            (4, -2 * (width + height), 0.3 * width * height),
            (2.8, 1.4 * (width + height), -0.3 * width * height),
        )
        radius = min(first * max(np.roots([first, b, c])) for first, b, c in equations)
        expected.append(math.floor(max(0, radius) + 1e-9))
    assert gaussian_radius(torch.from_numpy(sizes)).tolist() == expected


def test_heat_map_equals_bells_drawn_point_by_point():
    cells = torch.tensor([[3, 2], [5, 2], [0, 6], [7, 0]])
    classes = torch.tensor([0, 0, 1, 0])
    radii = torch.tensor([2, 3, 4, 0])
    expected = np.zeros((2, 7, 8))
    for (x, y), label, radius in zip(cells.tolist(), classes.tolist(), radii.tolist(), strict=True):
        sigma = (2 * radius + 1) / 6
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                row, column = y + dy, x + dx
                if 0 <= row < 7 and 0 <= column < 8:
                    bell = math.exp(-(dx**2 + dy**2) / (2 * sigma**2))
                    expected[label, row, column] = max(expected[label, row, column], bell)
    found = heat_map(cells, classes, radii, (2, 7, 8))
    assert np.allclose(found, expected, atol=1e-6)
    assert found.eq(1).sum() == 4


def test_heat_map_without_objects_is_cold():
    empty = torch.zeros(0, 2, dtype=torch.long)
    assert not heat_map(empty, empty[:, 0], empty[:, 0], (2, 3, 4)).any()


def test_encode_places_centres_sizes_and_offsets():
    of_image = labels((1, 0.53, 0.24, 0.5, 0.3), (0, 0.5, 0.5, 0.0, 0.2), (2, 1.0, 1.0, 0.1, 0.1))
    targets = encode(of_image["boxes"], of_image["class_labels"], (3, 10, 20))
    # The second box has no area, the third one's centre lies on the map's last corner.
    assert targets.cells.tolist() == [2 * 20 + 10, 9 * 20 + 19]
    assert torch.allclose(targets.sizes, torch.tensor([[10.0, 3.0], [2.0, 1.0]]), atol=1e-5)
    assert torch.allclose(targets.offsets, torch.tensor([[0.6, 0.4], [1.0, 1.0]]), atol=1e-5)
    assert targets.heat[1, 2, 10] == targets.heat[2, 9, 19] == 1
    assert targets.heat.eq(1).sum() == 2


def test_decode_returns_what_was_encoded():
    boxes = [(1, 0.53, 0.24, 0.5, 0.3), (0, 0.3, 0.75, 0.2, 0.25), (2, 0.81, 0.66, 0.15, 0.4)]
    of_image = labels(*boxes)
    targets = encode(of_image["boxes"], of_image["class_labels"], (3, 10, 20))
    sizes, offsets = torch.zeros(1, 2, 200), torch.zeros(1, 2, 200)
    sizes[0][:, targets.cells], offsets[0][:, targets.cells] = targets.sizes.T, targets.offsets.T
    output = CenterNetOutput(
        logits=torch.logit(targets.heat[None] * 0.98 + 0.01),
        sizes=sizes.view(1, 2, 10, 20),
        offsets=offsets.view(1, 2, 10, 20),
    )
    (found,) = decode(output, 3)
    assert found["scores"].tolist() == pytest.approx([0.99] * 3, rel=1e-4)
    order = found["labels"].argsort()
    for row, (label, x, y, width, height) in zip(order, sorted(boxes), strict=True):
        expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert found["labels"][row] == label
        assert found["boxes"][row].tolist() == pytest.approx(expected, abs=1e-5)


def test_decode_equals_a_search_for_peaks_cell_by_cell():
    draw = np.random.default_rng(2)
    logits, sizes, offsets = (draw.normal(size=(n, 6, 7)).astype(np.float32) for n in (3, 2, 2))
    peaks = []
    for label, y, x in np.ndindex(3, 6, 7):
        around = logits[label, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        if logits[label, y, x] == around.max():
            peaks.append((1 / (1 + math.exp(-logits[label, y, x])), label, y, x))
    peaks = sorted(peaks, reverse=True)[:5]
    output = CenterNetOutput(
        *(None if m is None else torch.from_numpy(m)[None] for m in (None, logits, sizes, offsets))
    )
    (found,) = decode(output, 5)
    for row, (score, label, y, x) in enumerate(peaks):
        assert found["scores"][row].item() == pytest.approx(score, rel=1e-5)
        assert found["labels"][row] == label
        middle = (x + offsets[0, y, x]) / 7, (y + offsets[1, y, x]) / 6
        width, height = sizes[0, y, x] / 7, sizes[1, y, x] / 6
        expected = [middle[0] - width / 2, middle[1] - height / 2]
        expected += [middle[0] + width / 2, middle[1] + height / 2]
        assert found["boxes"][row].tolist() == pytest.approx(expected, abs=1e-5)


def test_centernet_losses_are_those_of_the_heads_at_centres():
    model = tiny(deformable=False)
    boxes = [(1, 0.53, 0.24, 0.5, 0.3), (0, 0.3, 0.75, 0.2, 0.25)]
    of_images = [labels(*boxes), labels()]
    output = model(torch.randn(2, 3, 64, 96), labels=of_images)
    assert output.logits.shape == (2, 3, 16, 24)
    errors = []
    for label, x, y, width, height in boxes:
        column, row = int(x * 24), int(y * 16)
        found = output.sizes[0, :, row, column].tolist()
        errors += [abs(found[0] - width * 24), abs(found[1] - height * 16)]
        assert label in (0, 1)
    assert output.losses["size"].item() == pytest.approx(np.mean(errors), rel=1e-5)
    losses = output.losses
    expected = losses["heat"] + 0.1 * losses["size"] + losses["offset"]
    assert torch.allclose(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_centernet_trains_on_a_batch_without_objects():
    loss = tiny()(torch.randn(2, 3, 64, 64), labels=[labels(), labels()]).loss
    loss.backward()
    assert loss.isfinite()


def test_centernet_begins_as_published():
    model = tiny()
    output = model.eval()(torch.randn(1, 3, 64, 64))
    assert output.logits.mean().item() == pytest.approx(-2.19, abs=0.5)
    assert output.sizes.abs().max() < 0.1
    kernel = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(model.neck[1][3].weight[2, 0], kernel[:, None] * kernel)
    assert not model.neck[0][0].steering.weight.any()


def test_centernet_has_the_published_number_of_weights():
    model = CenterNetForObjectDetection(CenterNetConfig(num_labels=80))
    resnet18 = 11_689_512 - 513 * 1000
    neck = 0
    for narrow, wide in ((512, 256), (256, 128), (128, 64)):
        steering = 27 * (9 * narrow + 1)
        neck += steering + wide * (9 * narrow + 1) + 16 * wide * wide + 4 * wide
    heads = sum(64 * (9 * 64 + 1) + outputs * 65 for outputs in (80, 2, 2))
    assert model.num_parameters() == resnet18 + neck + heads


def test_centernet_is_saved_and_loaded_by_the_auto_class(tmp_path):
    model = tiny().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 64, 64)
    for name in ("logits", "sizes", "offsets"):
        assert torch.equal(getattr(loaded(pixels), name), getattr(model(pixels), name))
    assert loaded.config.backbone_config.hidden_sizes == [4, 6, 6, 8]


def test_centernet_convolutions_before_batch_norms_are_scale_invariant():
    model = tiny(deformable=False)
    batch = {
        "pixel_values": torch.randn(4, 3, 64, 64),
        "labels": [labels((1, 0.5, 0.5, 0.4, 0.4))] * 4,
    }
    found = probe(model, batch).granularities
    assert found["neck.0.0.weight"] == found["neck.2.0.weight"] == "row"
    # A transposed convolution's rows belong to inputs: only the whole can be scaled.
    assert found["neck.0.3.weight"] == "tensor"
    assert found["backbone.embedder.embedder.convolution.weight"] == "row"
    assert found["heat.0.weight"] is None


def test_configuration_refuses_to_go_nowhere():
    with pytest.raises(ValueError, match=r"neck_channels=\(\) must have at least one step up"):
        CenterNetConfig(neck_channels=())


def interpolate(plane, row, column):
    """The value between four pixels, 0 outside."""
    value = 0.0
    for y in (math.floor(row), math.floor(row) + 1):
        for x in (math.floor(column), math.floor(column) + 1):
            if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]:
                value += plane[y, x] * (1 - abs(row - y)) * (1 - abs(column - x))
    return value


def test_deformable_convolution_equals_a_sum_tap_by_tap():
    layer = DeformableConv2d(2, 3).double()
    torch.nn.init.normal_(layer.steering.weight, std=0.3)
    torch.nn.init.normal_(layer.steering.bias)
    torch.nn.init.normal_(layer.bias)
    features = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    steering = layer.steering(features)[0].detach().numpy()
    weight, image = layer.weight.detach().numpy(), features[0].numpy()
    found = layer(features)[0].detach().numpy()
    for out, row, column in np.ndindex(3, 4, 5):
        expected = layer.bias[out].item()
        for tap in range(9):
            at = row + tap // 3 - 1 + steering[2 * tap, row, column]
            across = column + tap % 3 - 1 + steering[2 * tap + 1, row, column]
            mask = 1 / (1 + math.exp(-steering[18 + tap, row, column]))
            for channel in range(2):
                seen = interpolate(image[channel], at, across)
                expected += weight[out, channel, tap // 3, tap % 3] * mask * seen
        assert found[out, row, column] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_deformable_convolution_begins_as_half_a_plain_one():
    layer = DeformableConv2d(2, 3)
    features = torch.randn(2, 2, 6, 5)
    plain = torch.nn.functional.conv2d(features, layer.weight, padding=1)
    assert torch.allclose(layer(features), 0.5 * plain, atol=1e-5)
