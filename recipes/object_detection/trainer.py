"""A Trainer for detectors: evaluation by COCO's average precision, whatever the model."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from recipes.common.matched_trainer import MatchedTrainer

from .evaluation import average_precision, to_image

__all__ = ["DetectionTrainer", "decode_queries"]

QUERIES = 100  # detections of an image by models that answer queries, as COCO counts them


def decode_queries(output: Any, num_labels: int) -> list[dict[str, Tensor]]:
    """Return each image's detections by a model of the DETR kind, the surest first.

    Args:
        output: `logits` (images, queries, classes) and `pred_boxes` (images, queries, 4), centre x
            and y, width and height. With one class more than `num_labels`, the last stands for
            nothing (DETR); otherwise every class of a query has a chance of its own (RT-DETR,
            D-FINE, Deformable DETR).
        num_labels: classes.

    Returns:
        `scores`, `labels` and `boxes`, left, top, right and bottom as shares of the image's sides.
    """
    logits = output.logits.float()
    if logits.shape[-1] == num_labels + 1:
        chances = logits.softmax(-1)[..., :-1]
    else:
        chances = logits.sigmoid()
    scores, places = chances.flatten(1).topk(min(QUERIES, chances[0].numel()))
    queries = (places // num_labels)[..., None].expand(-1, -1, 4)
    centres, sizes = output.pred_boxes.float().gather(1, queries).split(2, dim=-1)
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
    return [
        {"scores": score, "labels": label, "boxes": box}
        for score, label, box in zip(scores, places % num_labels, boxes, strict=True)
    ]


class DetectionTrainer(MatchedTrainer):
    """Trainer that evaluates by `average_precision`.

    Args:
        names: of the classes.
        kwargs: of `MatchedTrainer`; datasets are `Detections`.
    """

    def __init__(self, *args: Any, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names = names

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return COCO's measures of a data set, `PREFIX_ap` and so on."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        found = self.detect(dataset)
        measures = average_precision(dataset.images, found, self.names)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    @torch.no_grad()
    def detect(self, dataset: Dataset) -> dict[int, dict[str, Tensor]]:
        """Return the detections in each image, by its number, in pixels of the image."""
        # Prepared anew by every call, a distributed wrapper would be one more each time.
        model = self.accelerator.unwrap_model(self.model).to(self.args.device).eval()
        found: list[tuple[int, dict[str, Tensor]]] = []
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()
        for batch in tqdm(self.get_eval_dataloader(dataset), desc="detect", disable=hidden):
            with self.compute_loss_context_manager():
                output = model(pixel_values=batch["pixel_values"])
            if hasattr(model, "detect"):
                detections = model.detect(output)
            else:
                detections = decode_queries(output, len(self.names))
            for of_image, labels in zip(detections, batch["labels"], strict=True):
                boxes = to_image(of_image["boxes"], labels["frame"])
                kept = {**of_image, "boxes": boxes}
                found.append((int(labels["image_id"]), {k: v.cpu() for k, v in kept.items()}))
        # Images that fill up the last batch of several processes are there twice.
        return dict(gather_object(found))
