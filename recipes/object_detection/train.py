r"""Train an object detector with any optimizer of `--optim`, and score it by COCO's AP.

    DETECTION=recipes/object_detection
    accelerate launch -m hf_adamp -m recipes.object_detection.train \
        $DETECTION/configs/centernet.yaml --data_dir coco --optim adamp

Configurations come first, options after them overrule them. `--model` is centernet,
ssd300_vgg16_bn (with torchvision), or a detector of the Hub, such as PekingU/rtdetr_r18vd.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModelForObjectDetection, set_seed

from hf_adamp import ProjectionLog
from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse
from recipes.common.matched_trainer import MatchedArguments
from recipes.common.training import train_and_log

from .batches import MEAN, STD, Detections, collate
from .configuration_centernet import CenterNetConfig
from .modeling_centernet import CenterNetForObjectDetection
from .sources import SOURCES, Source, load
from .ssd import SsdForObjectDetection
from .trainer import DetectionTrainer

CENTERNET, SSD = "centernet", "ssd300_vgg16_bn"


@dataclass
class ModelArguments:
    """Which model; sizes are CenterNet's."""

    model: str = field(default=CENTERNET, metadata={"help": f"{CENTERNET}, {SSD}, or a Hub id."})
    backbone: str | None = field(
        default=None,
        metadata={"help": "A ResNet of the Hub, such as microsoft/resnet-18; None is untrained."},
    )
    pretrained: bool = field(default=False, metadata={"help": "SSD's VGG-16 by torchvision."})
    embedding_size: int = field(default=64, metadata={"help": "Width of the ResNet's stem."})
    hidden_sizes: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512], metadata={"help": "Of the ResNet's stages."}
    )
    depths: list[int] = field(
        default_factory=lambda: [2, 2, 2, 2], metadata={"help": "Blocks of each stage."}
    )
    neck_channels: list[int] = field(
        default_factory=lambda: [256, 128, 64], metadata={"help": "Of each step up."}
    )
    head_channels: int = field(default=64, metadata={"help": "Of the heads' hidden layers."})
    deformable: bool = field(default=True, metadata={"help": "Convolutions of the steps up."})
    live_batch_norms: bool = field(
        default=False, metadata={"help": "A Hub detector's backbone does not freeze its norms."}
    )


@dataclass
class DataArguments:
    """Images and boxes."""

    source: str = field(default="coco", metadata={"help": ", ".join(SOURCES)})
    data_dir: str | None = field(
        default=None, metadata={"help": "COCO's folder; for --source hub an id, or a copy of it."}
    )
    image_size: int = field(default=512, metadata={"help": "Sides of a training canvas."})
    eval_size: int | None = field(
        default=None, metadata={"help": "Of an evaluation's; None keeps each image's resolution."}
    )
    image_mean: list[float] = field(
        default_factory=lambda: list(MEAN), metadata={"help": "Of red, green and blue, 0 to 1."}
    )
    image_std: list[float] = field(
        default_factory=lambda: list(STD), metadata={"help": "Likewise, their deviations."}
    )
    sizes: bool = field(default=True, metadata={"help": "Whether counts must be COCO's."})

    def training_set(self, source: Source) -> Detections:
        """Return random canvases of the training images."""
        return Detections(
            source.splits["train"],
            self.image_size,
            augment=True,
            mean=self.image_mean,
            std=self.image_std,
        )

    def held_out_set(self, source: Source, split: str) -> Detections:
        """Return whole images of another split."""
        return Detections(
            source.splits[split],
            self.eval_size,
            augment=False,
            mean=self.image_mean,
            std=self.image_std,
        )


def build_model(arguments: ModelArguments, names: Sequence[str]) -> nn.Module:
    """Return the detector with the data's classes.

    Raises:
        ValueError: `live_batch_norms` is asked of a model that does not freeze any.
    """
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if arguments.model == SSD:
        return SsdForObjectDetection(len(names), pretrained=arguments.pretrained)
    if arguments.model == CENTERNET:
        return _centernet(arguments, labels)
    config = AutoConfig.from_pretrained(arguments.model, **labels)
    if arguments.live_batch_norms:
        if not hasattr(config, "freeze_backbone_batch_norms"):
            raise ValueError(
                f"live_batch_norms=True: {arguments.model} has no freeze_backbone_batch_norms; "
                "RT-DETR, RT-DETRv2 and D-FINE do."
            )
        config.freeze_backbone_batch_norms = False
    return AutoModelForObjectDetection.from_pretrained(
        arguments.model, config=config, ignore_mismatched_sizes=True
    )


def _centernet(arguments: ModelArguments, labels: dict[str, Any]) -> CenterNetForObjectDetection:
    if len(arguments.hidden_sizes) != len(arguments.depths):
        raise ValueError(
            f"hidden_sizes={arguments.hidden_sizes} and depths={arguments.depths} must have one "
            "number a stage each."
        )
    if arguments.backbone is None:
        backbone: Any = {
            **{"layer_type": "basic", "embedding_size": arguments.embedding_size},
            **{"hidden_sizes": arguments.hidden_sizes, "depths": arguments.depths},
        }
    else:
        trained = AutoBackbone.from_pretrained(arguments.backbone)
        backbone = trained.config
    model = CenterNetForObjectDetection(
        CenterNetConfig(
            backbone_config=backbone,
            neck_channels=arguments.neck_channels,
            head_channels=arguments.head_channels,
            deformable=arguments.deformable,
            **labels,
        )
    )
    if arguments.backbone is not None:
        model.backbone.load_state_dict(trained.state_dict())
    return model


def build_trainer(
    model: nn.Module, source: Source, data: DataArguments, args: MatchedArguments
) -> DetectionTrainer:
    """Put model and images together."""
    # What a batch has beside the model's arguments belongs to the labels.
    args.remove_unused_columns = False
    return DetectionTrainer(
        model,
        args,
        names=source.names,
        data_collator=collate,
        train_dataset=data.training_set(source),
        eval_dataset=data.held_out_set(source, "validation"),
        callbacks=[ProjectionLog(jsonl=Path(args.output_dir) / "projection.jsonl", per_kind=False)],
    )


def run(
    models: ModelArguments, data: DataArguments, args: MatchedArguments, *, test: bool = True
) -> dict[str, float]:
    """Train and evaluate; return the measures, and leave model and measures in the folder.

    Args:
        models: which model.
        data: which images.
        args: how it is trained.
        test: whether the test set is scored, too, where there is one. COCO's boxes for its test
            set are not public, so its validation set is what published numbers are of.
    """
    with args.main_process_first(desc="read the annotations"):
        source = load(data.source, data.data_dir, sizes=data.sizes, scene_size=data.image_size)
    set_seed(args.seed)
    trainer = build_trainer(build_model(models, source.names), source, data, args)
    if trainer.is_world_process_zero():
        counts = ", ".join(f"{len(images):,} {name}" for name, images in source.splits.items())
        weights = sum(parameter.numel() for parameter in trainer.model.parameters())
        print(f"{weights:,} weights, {len(source.names)} classes, images: {counts}")
    trained = train_and_log(trainer)
    trainer.save_model()
    trainer.save_state()
    measures = dict(trained)
    for split in ("validation", "test") if test and "test" in source.splits else ("validation",):
        metrics = trainer.evaluate(data.held_out_set(source, split), metric_key_prefix=split)
        trainer.log_metrics(split, metrics)
        trainer.save_metrics(split, metrics)
        measures |= metrics
    return measures


def main(argv: list[str] | None = None) -> None:
    """Read the options, and run."""
    classes = (ModelArguments, DataArguments, MatchedArguments)
    run(*parse(classes, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_and_exit(main)
