"""Pictures of scenes with what a trained model found in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_adamp.diagnostics.plots import COLOURS, load_matplotlib

from .batches import Detections, collate
from .evaluation import to_image
from .modeling_centernet import CenterNetForObjectDetection
from .sources import load

__all__ = ["draw_detections"]

SHOWN = 6  # scenes, the first of the test set
SUREST = 0.3  # detections below this chance are not drawn


@torch.no_grad()
def draw_detections(models: Mapping[str, Path], output: Path, *, side: int = 96) -> Path:
    """Draw the test set's first scenes with what models find, one row each, and with the truth.

    Args:
        models: a title, and the folder of a model.
        output: the picture.
        side: of the scenes, in pixels. Default: 96.
    """
    scenes = load("scenes", None, scene_size=side).splits["test"][:SHOWN]
    batch = collate([Detections(scenes, side, augment=False)[place] for place in range(SHOWN)])
    figure_class, canvas_class = load_matplotlib()
    rows = len(models) + 1
    figure = figure_class(figsize=(2.2 * SHOWN, 2.4 * rows), dpi=130, layout="constrained")
    canvas_class(figure)
    axes = figure.subplots(rows, SHOWN)
    for axis, scene in zip(axes[0], scenes, strict=True):
        _draw(axis, scene.read(), scene.boxes, scene.classes, None)
    axes[0][0].set_ylabel("truth")
    for row, (title, folder) in zip(axes[1:], models.items(), strict=True):
        model = CenterNetForObjectDetection.from_pretrained(folder).eval()
        found = model.detect(model(batch["pixel_values"]))
        for axis, scene, of_scene, labels in zip(row, scenes, found, batch["labels"], strict=True):
            sure = of_scene["scores"] >= SUREST
            boxes = to_image(of_scene["boxes"][sure], labels["frame"]).numpy()
            classes, scores = (of_scene[key][sure].numpy() for key in ("labels", "scores"))
            _draw(axis, scene.read(), boxes, classes, scores)
        row[0].set_ylabel(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return output


def _draw(
    axis: Any, image: Any, boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray | None
) -> None:
    """Draw an image and its boxes, each with its class and, if there is one, its score."""
    names = load("scenes", None, scene_size=image.width).names
    axis.imshow(image)
    axis.set(xticks=[], yticks=[], xlim=(0, image.width), ylim=(image.height, 0))
    for number, (box, label) in enumerate(zip(boxes, classes, strict=True)):
        left, top, right, bottom = box
        colour = COLOURS[int(label) % len(COLOURS)]
        across, down = [left, right, right, left, left], [top, top, bottom, bottom, top]
        axis.plot(across, down, color=colour, linewidth=1.2)
        text = names[int(label)] + ("" if scores is None else f" {scores[number]:.2f}")
        box_style = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
        axis.text(left, top, text, fontsize=5, color="white", va="bottom", bbox=box_style)
