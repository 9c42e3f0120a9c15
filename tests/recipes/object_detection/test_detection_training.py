"""Canvases and their boxes, other kinds of detectors, and a training end to end."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import RTDetrConfig, RTDetrForObjectDetection

from recipes.object_detection import batches, compare, demo, sources
from recipes.object_detection.batches import (
    Detections,
    collate,
    evaluation_frame,
    jitter_colours,
    place_boxes,
    training_frame,
)
from recipes.object_detection.sources import Annotated
from recipes.object_detection.train import ModelArguments, build_model, main
from recipes.object_detection.trainer import decode_queries

SMALL = [
    *("recipes/object_detection/configs/demo.yaml", "--image_size", "64", "--eval_size", "64"),
    *("--hidden_sizes", "4", "6", "--embedding_size", "4"),
    *("--neck_channels", "4", "--head_channels", "4"),
    *("--per_device_train_batch_size", "4", "--logging_steps", "1"),
]


@pytest.fixture
def few_scenes(monkeypatch):
    """Splits of a few scenes, so that a run takes a second."""
    monkeypatch.setattr(
        sources, "SCENES", {"train": (8, 0), "validation": (4, 100), "test": (4, 200)}
    )
    sources._scenes.cache_clear()
    yield
    sources._scenes.cache_clear()


def marked(boxes, size=(60, 40)):
    """A dark image with a white rectangle for each box."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 255
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return Annotated(
        *(3, size, lambda: Image.fromarray(pixels), boxes),
        *(np.arange(count), np.ones(count), np.zeros(count, bool)),
    )


def bright(pixels, mean, std):
    """Left, top, right, bottom of what is white on a canvas, as shares of its sides."""
    shown = (pixels * std + mean).mean(0) > 0.5
    rows, columns = (shown.any(axis).nonzero()[:, 0] for axis in (1, 0))
    height, width = shown.shape
    edges = [columns[0] / width, rows[0] / height]
    edges += [(columns[-1] + 1) / width, (rows[-1] + 1) / height]
    return [edge.item() for edge in edges]


def corners(boxes):
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=-1)


@pytest.mark.parametrize("size", [(60, 40), (40, 60)])
@pytest.mark.parametrize("side", [128, None])
def test_evaluation_boxes_lie_where_objects_are_seen(size, side):
    dataset = Detections([marked([(11, 7, 31, 19)], size)], side, augment=False)
    row = dataset[0]
    found = bright(row["pixel_values"], dataset.mean, dataset.std)
    assert corners(row["labels"]["boxes"])[0].tolist() == pytest.approx(found, abs=0.03)
    shape = row["pixel_values"].shape
    assert shape == ((3, 128, 128) if side else (3, 64, 64))


def test_training_boxes_lie_where_objects_are_seen(monkeypatch):
    """Crops and mirrors move both alike; the colours are left alone to see them."""
    monkeypatch.setattr(batches, "jitter_colours", lambda pixels: pixels)
    dataset = Detections([marked([(11, 7, 31, 19)])], 128, augment=True)
    seen, middles = 0, set()
    for _ in range(40):
        row = dataset[0]
        if len(row["labels"]["boxes"]):
            found = bright(row["pixel_values"], dataset.mean, dataset.std)
            box = corners(row["labels"]["boxes"])[0]
            assert box.tolist() == pytest.approx(found, abs=0.03)
            seen += 1
            middles.add(round(box[0].item(), 2))
    assert seen > 20
    assert len(middles) > 10


def test_training_frames_are_squares_of_the_published_scales():
    scales = set()
    for _ in range(200):
        canvas = training_frame((600, 400), 512)
        left, top, right, bottom = canvas.frame
        assert right - left == pytest.approx(bottom - top)
        scales.add(round((right - left) / 600, 3))
        assert 128 <= (left + right) / 2 <= 600 - 128
        assert 128 <= (top + bottom) / 2 <= 400 - 128
    assert scales == {0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3}


def test_evaluation_frame_keeps_the_resolution_and_rounds_up():
    canvas = evaluation_frame((500, 333), None)
    assert canvas.size == (512, 352)
    left, top, right, bottom = canvas.frame
    assert (right - left, bottom - top) == (512, 352)
    assert max(left, top) <= 0
    assert right >= 500
    assert bottom >= 333


def test_place_boxes_cuts_at_the_edge_and_leaves_out_crowds_and_what_is_not_seen():
    found = marked([(0, 0, 20, 20), (30, 10, 50, 30), (52, 0, 60, 8)])
    found.crowds[1] = True
    boxes, classes = place_boxes(found, batches.Canvas((10, 10), (10.0, 0.0, 50.0, 40.0)))
    assert classes.tolist() == [0]
    assert corners(boxes)[0].tolist() == pytest.approx([0, 0, 0.25, 0.5])


def test_jitter_colours_moves_a_grey_image_within_its_bounds():
    changed = torch.stack([jitter_colours(torch.full((3, 4, 5), 0.5)) for _ in range(300)])
    # Brightness takes 0.5 to 0.3 or 0.7, contrast and saturation then up to 1.4 times as far from
    # 0.5 each; the light's colour adds little.
    furthest = 0.2 * 1.4 * 1.4
    assert 0.5 - furthest - 0.08 < changed.min() < 0.35
    assert 0.65 < changed.max() < 0.5 + furthest + 0.08
    assert changed.std(dim=1).max() < 0.08
    # No place differs from another, since they did not before.
    assert torch.allclose(changed.amax(dim=(-2, -1)), changed.amin(dim=(-2, -1)), atol=1e-6)


def test_collate_refuses_canvases_of_different_sizes():
    dataset = Detections([marked([]), marked([], (90, 40))], None, augment=False)
    with pytest.raises(ValueError, match="per_device_eval_batch_size 1"):
        collate([dataset[0], dataset[1]])
    with pytest.raises(ValueError, match="image_size=None cannot train"):
        Detections([], None, augment=True)


def rt_detr():
    config = RTDetrConfig(
        backbone_config={
            **{"model_type": "rt_detr_resnet", "embedding_size": 4, "layer_type": "basic"},
            **{"hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1]},
            "out_features": ["stage2", "stage3", "stage4"],
        },
        encoder_in_channels=[4, 8, 8],
        **{"encoder_hidden_dim": 16, "encoder_ffn_dim": 16, "encoder_layers": 1},
        **{"d_model": 16, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16},
        **{"decoder_layers": 1, "num_queries": 12, "num_denoising": 0, "num_labels": 3},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"use_pretrained_backbone": False, "backbone": None},
    )
    return RTDetrForObjectDetection(config)


def test_hub_detectors_learn_from_our_batches_and_are_decoded(tmp_path):
    rt_detr().save_pretrained(tmp_path)
    frozen, live = (
        build_model(ModelArguments(model=str(tmp_path), live_batch_norms=live), ("a", "b", "c"))
        for live in (False, True)
    )
    kinds = [{type(m).__name__ for m in model.model.backbone.modules()} for model in (frozen, live)]
    assert "RTDetrFrozenBatchNorm2d" in kinds[0]
    assert "RTDetrFrozenBatchNorm2d" not in kinds[1]
    dataset = Detections([marked([(11, 7, 31, 19)])], 64, augment=False)
    loss = live(**collate([dataset[0]] * 2)).loss
    assert loss.isfinite()
    output = live.eval()(collate([dataset[0]])["pixel_values"])
    (found,) = decode_queries(output, 3)
    best = int(output.logits.sigmoid().argmax())
    assert found["scores"][0] == output.logits.sigmoid().max()
    assert found["labels"][0] == best % 3
    expected = corners(output.pred_boxes[0, best // 3][None])[0]
    assert torch.allclose(found["boxes"][0], expected)


def test_decode_queries_leaves_out_the_class_of_nothing():
    logits = torch.tensor([[[0.0, 1.0, 5.0], [3.0, 0.0, 0.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]]])
    (found,) = decode_queries(SimpleNamespace(logits=logits, pred_boxes=boxes), 2)
    assert found["labels"][0] == 0
    assert found["scores"][0] == logits[0, 1].softmax(-1)[0]
    assert found["boxes"][0].tolist() == pytest.approx([0.2, 0.2, 0.4, 0.4])


def test_live_batch_norms_are_asked_of_models_that_freeze_theirs(tmp_path):
    model = build_model(ModelArguments(hidden_sizes=[4] * 4, neck_channels=[4] * 3), ("a",))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no freeze_backbone_batch_norms"):
        build_model(ModelArguments(model=str(tmp_path), live_batch_norms=True), ("a",))


def test_centernet_has_a_depth_for_each_stage():
    with pytest.raises(ValueError, match=r"hidden_sizes=\[4, 4\] and depths=\[2, 2, 2, 2\]"):
        build_model(ModelArguments(hidden_sizes=[4, 4]), ("a",))


def test_ssd_says_that_it_needs_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match="needs the torchvision that fits your torch"):
        build_model(ModelArguments(model="ssd300_vgg16_bn"), ("a",))


def test_ssd_learns_from_our_batches_and_returns_shares():
    pytest.importorskip("torchvision", reason="needs torchvision")
    model = build_model(ModelArguments(model="ssd300_vgg16_bn"), ("a", "b"))
    batch = collate([Detections([marked([(11, 7, 31, 19)])], 300, augment=False)[0]] * 2)
    batch["labels"][1] = {"class_labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)}
    assert model(**batch)["loss"].isfinite()
    for found in model.eval().detect(model(batch["pixel_values"])):
        assert set(found["labels"].tolist()) <= {0, 1}
        assert ((found["boxes"] >= 0) & (found["boxes"] <= 1)).all()


@pytest.mark.parametrize("optim", [["--optim", "adamp"], ["--adam_l2", "true"]])
def test_train_scores_and_keeps_the_model(few_scenes, tmp_path, optim):
    main([*SMALL, "--num_train_epochs", "1", "--output_dir", str(tmp_path), *optim])
    results = json.loads((tmp_path / "all_results.json").read_text())
    for split in ("validation", "test"):
        assert 0 <= results[f"{split}_ap"] <= 1
        assert results[f"{split}_ap_large"] == -1
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "projection.jsonl").read_text().count('"weight": null') == 2


def test_train_resumed_equals_an_uninterrupted_one(few_scenes, tmp_path):
    command = [*SMALL, "--optim", "adamp", "--save_strategy", "epoch"]
    main([*command, "--num_train_epochs", "2", "--output_dir", str(tmp_path / "whole")])
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    resumed = [*command, "--resume_from_checkpoint", str(tmp_path / "checkpoint-2")]
    main([*resumed, "--num_train_epochs", "2", "--output_dir", str(tmp_path / "parts")])
    bits = [(tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts")]
    assert bits[0] == bits[1]


def test_demo_trains_chooses_and_compares(few_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SEEDS", (1,))
    for module in (demo, compare):
        monkeypatch.setattr(module, "RATES", (1e-2,))
    config = tmp_path / "demo.yaml"
    lines = (demo.CONFIG).read_text().replace("num_train_epochs: 16", "num_train_epochs: 1")
    config.write_text(lines)
    monkeypatch.setattr(demo, "CONFIG", config)
    for stage in ("search", "final"):
        monkeypatch.setattr("sys.argv", ["demo", str(tmp_path / "runs"), "--stage", stage])
        demo.main()
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "runs")])
    monkeypatch.setattr("recipes.object_detection.pictures.SHOWN", 2)
    compare.main()
    printed = capsys.readouterr().out
    assert "| AP, small" in printed
    assert "AdamP − AdamW, ± se" in printed
    for name in ("training.png", "detections.png"):
        assert (tmp_path / "runs" / name).stat().st_size > 10_000
