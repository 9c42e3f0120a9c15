r"""Train an image embedder with any arm of `--optim`, and score it by Recall@K on unseen classes.

    RETRIEVAL=recipes/image_retrieval
    accelerate launch -m hf_adamp -m recipes.image_retrieval.train \
        $RETRIEVAL/configs/base.yaml $RETRIEVAL/configs/sop.yaml --data_dir SOP --optim adamp

Configurations come first, options after them overrule them. With `--validation_share` some of the
training classes are held out and scored, to choose by, and the test set is not looked at.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, set_seed

from hf_adamp import ProjectionLog
from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse
from recipes.common.training import train_and_log

from .batches import RetrievalSet, icon_pixels, photo_transform, turn_and_move
from .configuration_embedder import LOSSES, ImageEmbedderConfig
from .modeling_embedder import ImageEmbedder
from .sources import ICONS, SOURCES, Item, Source, hold_out, load
from .trainer import RetrievalArguments, RetrievalTrainer

FIRST = "recall_at_1"


@dataclass
class ModelArguments:
    """The network and its loss."""

    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Trained weights: a ResNet of the Hub, such as microsoft/resnet-50, or the "
            "folder of an embedder. None is an untrained small network."
        },
    )
    embedding_size: int = field(default=512, metadata={"help": "Length of an embedding."})
    loss: str = field(default="proxy_anchor", metadata={"help": ", ".join(LOSSES)})
    margin: float = field(default=0.1, metadata={"help": "Of either loss."})
    alpha: float = field(default=32.0, metadata={"help": "Scale of Proxy-Anchor."})
    freeze_batch_norms: bool = field(
        default=False, metadata={"help": "BatchNorms keep statistics, gain and bias."}
    )


@dataclass
class DataArguments:
    """The images."""

    source: str = field(default="cub", metadata={"help": ", ".join(SOURCES)})
    data_dir: str | None = field(default=None, metadata={"help": "The folder; none for icons."})
    image_size: int = field(default=224, metadata={"help": "Sides of photographs, in pixels."})
    sizes: bool = field(default=True, metadata={"help": "Whether counts must be as published."})
    validation_share: float = field(
        default=0.0,
        metadata={"help": "Share of training classes to score in place of the test set."},
    )

    def transform(self, *, augment: bool) -> Callable[[Image.Image], Tensor]:
        """Return what makes pixels of an image."""
        if self.source in ICONS:
            return turn_and_move if augment else icon_pixels
        return photo_transform(self.image_size, augment=augment)


def build_model(arguments: ModelArguments, num_classes: int) -> ImageEmbedder:
    """Return the embedder with its pretrained backbone.

    Raises:
        ValueError: the backbone is neither a ResNet nor an embedder.
    """
    settings: dict[str, Any] = {
        **{"embedding_size": arguments.embedding_size, "loss": arguments.loss},
        **{"margin": arguments.margin, "alpha": arguments.alpha, "num_classes": num_classes},
        "freeze_batch_norms": arguments.freeze_batch_norms,
    }
    if arguments.backbone is None:
        return ImageEmbedder(ImageEmbedderConfig(**settings))
    known = AutoConfig.from_pretrained(arguments.backbone)
    if known.model_type not in ("resnet", ImageEmbedderConfig.model_type):
        raise ValueError(
            f"backbone={arguments.backbone!r} is a {known.model_type}; name a ResNet, such as "
            "microsoft/resnet-50, or the folder of an embedder."
        )
    trained = AutoModel.from_pretrained(arguments.backbone)
    if isinstance(known, ImageEmbedderConfig):
        sizes = ("backbone_config", "widths", "strides", "num_channels")
        settings |= {name: getattr(known, name) for name in sizes}
        trained = trained.backbone
    else:
        settings["backbone_config"] = known
    model = ImageEmbedder(ImageEmbedderConfig(**settings))
    model.backbone.load_state_dict(trained.state_dict())
    return model


def build_trainer(
    model: ImageEmbedder,
    train: Sequence[Item],
    scored: Sequence[Item],
    data: DataArguments,
    args: RetrievalArguments,
) -> RetrievalTrainer:
    """Put model and images together."""
    return RetrievalTrainer(
        model,
        args,
        train_dataset=RetrievalSet(train, data.transform(augment=True), roles=False),
        eval_dataset=RetrievalSet(scored, data.transform(augment=False), roles=True),
        callbacks=[ProjectionLog(jsonl=Path(args.output_dir) / "projection.jsonl", per_kind=False)],
    )


def best_epoch(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the best Recall@1 of the evaluations during training, and its epoch."""
    scored = [entry for entry in history if f"eval_{FIRST}" in entry]
    if not scored:
        return {}
    best = max(scored, key=lambda entry: float(entry[f"eval_{FIRST}"]))
    return {
        f"best_epoch_on_test_{FIRST}": best[f"eval_{FIRST}"],
        "best_epoch_on_test": best["epoch"],
    }


def run(models: ModelArguments, data: DataArguments, args: RetrievalArguments) -> dict[str, float]:
    """Train and score; return the measures, and leave model and measures in the folder.

    What counts is `test_recall_at_1` and so on, of the last epoch. With `--eval_strategy epoch` the
    best epoch, chosen on the test set as in the published runs, stands beside it.
    """
    with args.main_process_first(desc="find the images"):
        source: Source = load(data.source, data.data_dir, sizes=data.sizes)
    split, train, scored = "test", source.train, source.test
    if data.validation_share:
        split, (train, scored) = "validation", hold_out(source.train, data.validation_share)
    set_seed(args.seed)
    num_classes = len({item.label for item in train})
    trainer = build_trainer(build_model(models, num_classes), train, scored, data, args)
    if trainer.is_world_process_zero():
        weights = sum(parameter.numel() for parameter in trainer.model.parameters())
        print(
            f"{weights:,} weights; {len(train):,} images of {num_classes:,} classes train, "
            f"{len(scored):,} {split}"
        )
    trained = train_and_log(trainer)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate(metric_key_prefix=split)
    if split == "test":
        # The last evaluation is not one more epoch.
        metrics |= best_epoch(trainer.state.log_history)
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
    return trained | metrics


def main(argv: list[str] | None = None) -> None:
    """Read the options, and run."""
    classes = (ModelArguments, DataArguments, RetrievalArguments)
    run(*parse(classes, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_and_exit(main)
