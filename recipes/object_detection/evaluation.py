"""COCO's average precision of detections, by COCO's own evaluator (pycocotools)."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from .sources import Annotated

__all__ = ["MEASURES", "average_precision", "to_image"]

# The evaluator's numbers, in its order.
MEASURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def to_image(boxes: Tensor, frame: Tensor) -> Tensor:
    """Turn shares of a canvas into pixels of the image.

    Args:
        boxes: left, top, right, bottom as shares of the canvas, (n, 4).
        frame: left, top, right, bottom of what the canvas shows, in pixels, (4,).
    """
    start, extent = frame[:2].repeat(2), (frame[2:] - frame[:2]).repeat(2)
    return start + boxes * extent


def average_precision(
    images: Sequence[Annotated], found: Mapping[int, Mapping[str, Any]], names: Sequence[str]
) -> dict[str, float]:
    """Return COCO's twelve measures, from 0 to 1; -1 where no object of a size is there.

    Args:
        images: what is on them.
        found: by the image's number, `scores` (n,), `labels` (n,) and `boxes` (n, 4): left, top,
            right, bottom in pixels of the image.
        names: of the classes.
    """
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i.number, "width": i.size[0], "height": i.size[1]} for i in images],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": list(_annotations(images)),
    }
    rows = [row for number, of_image in found.items() for row in _rows(number, of_image)]
    # It reports on the console what it returns, too.
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, _results(truth, rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(MEASURES, map(float, evaluator.stats), strict=True))


def _annotations(images: Sequence[Annotated]) -> Any:
    """Yield COCO's rows; numbers begin at 1, because 0 counts as no match there."""
    number = 0
    for image in images:
        for box, label, area, crowd in zip(
            image.boxes, image.classes, image.areas, image.crowds, strict=True
        ):
            number += 1
            yield {
                **{"id": number, "image_id": image.number, "category_id": int(label) + 1},
                **{"bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])]},
                **{"area": float(area), "iscrowd": int(crowd)},
            }


def _rows(number: int, of_image: Mapping[str, Any]) -> np.ndarray:
    """Return image, left, top, width, height, score and class of each detection, (n, 7)."""
    boxes = np.asarray(of_image["boxes"], dtype=np.float64).reshape(-1, 4)
    scores = np.asarray(of_image["scores"], dtype=np.float64)
    labels = np.asarray(of_image["labels"], dtype=np.float64) + 1
    image = np.full(len(boxes), float(number))
    return np.column_stack([image, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, labels])


def _results(truth: COCO, rows: Sequence[np.ndarray]) -> COCO:
    if rows:
        return truth.loadRes(np.stack(rows))
    # `loadRes` fails where nothing was found.
    nothing = COCO()
    nothing.dataset = truth.dataset | {"annotations": []}
    nothing.createIndex()
    return nothing
