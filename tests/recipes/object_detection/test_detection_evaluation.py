"""COCO's average precision against its definition, written out in float64."""

import numpy as np
import pytest
import torch

from recipes.object_detection.evaluation import average_precision, to_image
from recipes.object_detection.sources import Annotated

NAMES = ("ant", "bee", "cat")
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def annotated(number, boxes, classes, crowds=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    crowds = np.zeros(len(boxes), bool) if crowds is None else np.asarray(crowds)
    return Annotated(number, (200, 200), None, boxes, np.asarray(classes), areas, crowds)


def overlap(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = np.prod(sides.clip(min=0))
    return common / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - common)


def precision_of_a_class(images, found, label, threshold):
    """Mean over 101 recalls of the best precision at that recall or a higher one."""
    taken = {image.number: set() for image in images}
    truths = {image.number: image.boxes[image.classes == label].astype(float) for image in images}
    rows = [
        (score, number, box)
        for number, of in found.items()
        for score, of_label, box in zip(of["scores"], of["labels"], of["boxes"], strict=True)
        if of_label == label
    ]
    hits = []
    for _, number, box in sorted(rows, key=lambda row: -row[0]):
        best = max(
            (
                (overlap(box.numpy().astype(float), truth), place)
                for place, truth in enumerate(truths[number])
                if place not in taken[number]
            ),
            default=(0.0, None),
        )
        hits.append(best[0] >= threshold)
        if hits[-1]:
            taken[number].add(best[1])
    hits = np.cumsum(hits)
    recalls = hits / sum(map(len, truths.values()))
    precisions = hits / np.arange(1, len(hits) + 1)
    return np.mean(
        [
            max((p for p, r in zip(precisions, recalls, strict=True) if r >= level), default=0.0)
            for level in np.linspace(0, 1, 101)
        ]
    )


def scene_and_detections(seed):
    """Ten images with up to five boxes each, found again inexactly, with false alarms."""
    draw = np.random.default_rng(seed)
    images, found = [], {}
    for number in range(1, 11):
        count = draw.integers(1, 6)
        start, sides = draw.uniform(0, 120, (count, 2)), draw.uniform(12, 80, (count, 2))
        boxes = np.concatenate([start, start + sides], axis=-1).astype(np.float32)
        classes = draw.integers(3, size=count)
        images.append(annotated(number, boxes, classes))
        moved = boxes + draw.normal(scale=3, size=boxes.shape)
        alarms = draw.uniform(0, 60, (2, 4)) + np.array([0, 0, 70, 70])
        found[number] = {
            "boxes": torch.from_numpy(np.concatenate([moved, alarms]).astype(np.float32)),
            "labels": torch.from_numpy(np.concatenate([classes, draw.integers(3, size=2)])),
            "scores": torch.from_numpy(draw.permutation(100)[: count + 2] / 100 + number / 1e4),
        }
    return images, found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_equals_its_definition(seed):
    images, found = scene_and_detections(seed)
    table = np.array(
        [
            [precision_of_a_class(images, found, label, t) for t in THRESHOLDS]
            for label in range(len(NAMES))
        ]
    )
    measures = average_precision(images, found, NAMES)
    assert measures["ap"] == pytest.approx(table.mean(), abs=1e-9)
    assert measures["ap50"] == pytest.approx(table[:, 0].mean(), abs=1e-9)
    assert measures["ap75"] == pytest.approx(table[:, 5].mean(), abs=1e-9)
    assert 0.1 < measures["ap"] < 0.9


def test_average_precision_of_the_truth_is_one_and_of_nothing_zero():
    images, _ = scene_and_detections(0)
    truth = {
        image.number: {
            "boxes": torch.from_numpy(image.boxes),
            "labels": torch.from_numpy(image.classes),
            "scores": torch.ones(len(image.boxes)),
        }
        for image in images
    }
    measures = average_precision(images, truth, NAMES)
    assert measures["ap"] == measures["ap_small"] == measures["ap_medium"] == pytest.approx(1)
    assert measures["ap_large"] == -1  # of which there is none
    assert average_precision(images, {}, NAMES)["ap"] == 0


def test_average_precision_overlooks_crowds():
    images = [annotated(1, [[0, 0, 50, 50], [100, 100, 190, 190]], [0, 0], [False, True])]
    found = {
        "boxes": torch.tensor([[0.0, 0, 50, 50], [110, 110, 180, 180]]),
        "labels": torch.zeros(2, dtype=torch.long),
        "scores": torch.tensor([0.5, 0.9]),
    }
    # The surer detection lies in the crowd: neither right nor wrong.
    assert average_precision(images, {1: found}, NAMES[:1])["ap"] == pytest.approx(1)


def test_to_image_turns_shares_of_the_frame_into_pixels():
    frame = torch.tensor([-10.0, 20.0, 30.0, 100.0])
    boxes = torch.tensor([[0.25, 0.5, 1.0, 1.0]])
    assert to_image(boxes, frame).tolist() == [[0.0, 60.0, 30.0, 100.0]]
