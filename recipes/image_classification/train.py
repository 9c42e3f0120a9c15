r"""Train an image classifier with any optimizer of `--optim`.

    IMAGES=recipes/image_classification
    accelerate launch -m hf_adamp -m recipes.image_classification.train \
        $IMAGES/configs/resnet50.yaml --data imagenet --optim adamp --output_dir runs/resnet50

Configurations come first, options after them overrule them.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from hf_adamp import ProjectionLog
from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse
from recipes.common.silhouettes import CLASSES, load_silhouettes

from .averaging import WeightAverage
from .models import ARCHITECTURES, SMALL, build_model
from .photographs import PhotoSet, find_unreadable
from .schedules import scaled_rate
from .small_images import SmallImages, take_batch
from .sources import SOURCES, Photos, check_labels
from .trainer import ImageTrainer, best_five, top_accuracies
from .transforms import BACKENDS, Mixing, evaluation_transform, training_transform

SILHOUETTES = "silhouettes"
_SPLIT_SEED = 20060  # of the data only: every run holds the same images out


@dataclass
class ModelArguments:
    """The network, and what is done to its labels, learning rate and weights."""

    model: str = field(metadata={"help": f"{SMALL}, {', '.join(ARCHITECTURES)}, or of the Hub."})
    image_size: int = field(default=224, metadata={"help": "Side of the square, in pixels."})
    dropout: float = field(default=0.0, metadata={"help": "Before the classifier; timm's models."})
    drop_path: float = field(default=0.0, metadata={"help": "Residual branches; timm's models."})
    smoothing: float = field(default=0.0, metadata={"help": "Label smoothing."})
    step_epochs: float | None = field(
        default=None, metadata={"help": "Epochs between steps of the rate; no lr_scheduler_type."}
    )
    step_factor: float = field(default=0.1, metadata={"help": "Of a step of the rate."})
    total_batch: int | None = field(
        default=None, metadata={"help": "Images a step, reached by accumulation."}
    )
    base_batch: int = field(default=256, metadata={"help": "Images a step learning_rate is for."})
    lr_scaling: str = field(default="none", metadata={"help": "none, linear or sqrt."})
    ema_decay: float | None = field(default=None, metadata={"help": "Average the weights."})


@dataclass
class DataArguments:
    """The images and what is done to them."""

    source: str = field(metadata={"help": f"{SILHOUETTES}, {', '.join(SOURCES)}"})
    data: str | None = field(
        default=None, metadata={"help": "The folder; for hub ID[:CONFIGURATION[:REVISION]]."}
    )
    num_labels: int | None = field(default=None, metadata={"help": "Asserted, as are the next."})
    train_images: int | None = field(default=None, metadata={"help": "In the training split."})
    validation_images: int | None = field(default=None, metadata={"help": "In the evaluated one."})
    held_out: int = field(
        default=0,
        metadata={"help": "Training images to choose settings on; the evaluated split tests."},
    )
    check_images: str = field(
        default="all", metadata={"help": "Decoded before the first step: all, or evaluation."}
    )
    transforms: str | None = field(
        default=None, metadata={"help": f"{' or '.join(BACKENDS)}; what is installed if not given."}
    )
    colour_jitter: float = field(default=0.0, metadata={"help": "Of torchvision."})
    rand_augment: str | None = field(default=None, metadata={"help": "As timm writes it."})
    random_erasing: float = field(default=0.0, metadata={"help": "Probability; timm's."})
    mixup: float = field(default=0.0, metadata={"help": "Alpha; timm's."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha; timm's."})


@dataclass
class Data:
    """What a run trains on and is measured on."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    num_labels: int
    collator: Any


def load_data(data: DataArguments, model: ModelArguments, args: TrainingArguments) -> Data:
    """Find, check and split the images."""
    if data.source == SILHOUETTES:
        splits = load_silhouettes()
        train, validation, test = (
            SmallImages(splits[name], flip=name == "train")
            for name in ("train", "validation", "test")
        )
        return Data(train, validation, test, len(CLASSES), take_batch)
    if data.source not in SOURCES or data.data is None:
        raise ValueError(
            f"source={data.source!r} with data={data.data!r}: known sources are {SILHOUETTES} and, "
            f"with --data, {', '.join(SOURCES)}."
        )
    if model.image_size < 32:
        raise ValueError(f"image_size={model.image_size} must be at least 32, the nets' stride.")
    if data.check_images not in ("all", "evaluation"):
        raise ValueError(f"check_images={data.check_images!r} must be all or evaluation.")
    # Before the search for images, which may take minutes.
    transform = training_transform(
        model.image_size,
        backend=data.transforms,
        colour_jitter=data.colour_jitter,
        rand_augment=data.rand_augment,
        random_erasing=data.random_erasing,
    )
    central = evaluation_transform(model.image_size, backend=data.transforms)
    photos = SOURCES[data.source](data.data)
    num_labels = check_labels(photos, data.num_labels)
    _check_counts(photos, data)
    readable = _find_readable(photos, data, args)
    train, held = _hold_out(readable["train"], data.held_out)
    report = Path(args.output_dir) / "unreadable_images.txt"
    report.parent.mkdir(parents=True, exist_ok=True)
    evaluated = PhotoSet(photos["validation"], central, readable["validation"])
    kept = PhotoSet(photos["train"], central, held)
    return Data(
        PhotoSet(photos["train"], transform, train, report),
        kept if data.held_out else evaluated,
        evaluated if data.held_out else None,
        num_labels,
        Mixing(num_labels, mixup=data.mixup, cutmix=data.cutmix),
    )


def _check_counts(photos: dict[str, Photos], data: DataArguments) -> None:
    """Hold the splits' sizes against what the configuration says."""
    expected = {"train": data.train_images, "validation": data.validation_images}
    for split, count in expected.items():
        if count is not None and len(photos[split]) != count:
            raise ValueError(
                f"{split} has {len(photos[split]):,} images, not {count:,}; give "
                f"--{split}_images {len(photos[split])} if that is meant."
            )


def _find_readable(
    photos: dict[str, Photos], data: DataArguments, args: TrainingArguments
) -> dict[str, np.ndarray]:
    """Return the numbers of the images that can be decoded; the main process looks for them."""
    file = Path(args.output_dir) / "readable_images.npz"
    with args.main_process_first(desc="look for unreadable images"):
        if args.process_index == 0:
            found = {}
            for split, images in photos.items():
                bad: dict[int, str] = {}
                if split == "validation" or data.check_images == "all":
                    bad = find_unreadable(images, args.dataloader_num_workers)
                for problem in bad.values():
                    print(f"{split}, left out: {problem}")
                print(f"{split}: {len(images) - len(bad):,} images, {len(bad)} left out")
                found[split] = np.setdiff1d(np.arange(len(images)), [*bad])
                if not len(found[split]):
                    raise ValueError(f"{split} has no image that can be decoded.")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(file, **found)
        with np.load(file) as written:
            return {split: written[split] for split in photos}


def _hold_out(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split training images into those to train on and `count` to choose settings on."""
    if not 0 <= count < len(numbers):
        raise ValueError(f"held_out={count} must be 0 to {len(numbers) - 1}, the training images.")
    order = np.random.default_rng(_SPLIT_SEED).permutation(numbers)
    return np.sort(order[count:]), np.sort(order[:count])


def set_batch(model: ModelArguments, args: TrainingArguments) -> None:
    """Reach `total_batch` by accumulation, and scale the learning rate for it.

    Raises:
        ValueError: the total is no multiple of what all processes take at once.
    """
    at_once = args.train_batch_size * args.world_size
    if model.total_batch is not None:
        if model.total_batch % at_once:
            raise ValueError(
                f"total_batch={model.total_batch} must be a multiple of {at_once}: "
                f"{args.train_batch_size} images on each of {args.world_size} processes."
            )
        args.gradient_accumulation_steps = model.total_batch // at_once
    args.learning_rate = scaled_rate(
        args.learning_rate,
        batch=at_once * args.gradient_accumulation_steps,
        base_batch=model.base_batch,
        rule=model.lr_scaling,
    )


def build_trainer(
    network: nn.Module, data: Data, model: ModelArguments, args: TrainingArguments
) -> ImageTrainer:
    """Put network, images and measures together."""
    average = None
    if model.ema_decay is not None:
        average = WeightAverage(model.ema_decay, _checkpoint(args))
    # A batch of the small form is one object, and no column of a table.
    args.remove_unused_columns = False
    args.label_names = ["labels"]
    log = Path(args.output_dir) / "projection.jsonl"
    return ImageTrainer(
        network,
        args,
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset=data.validation,
        compute_metrics=top_accuracies,
        preprocess_logits_for_metrics=best_five,
        callbacks=[ProjectionLog(jsonl=log, per_kind=False)],
        label_smoothing=model.smoothing,
        step_epochs=model.step_epochs,
        step_factor=model.step_factor,
        average=average,
    )


def _checkpoint(args: TrainingArguments) -> str | None:
    """Return the checkpoint to go on from; `--resume_from_checkpoint true` means the last one."""
    from transformers.trainer_utils import get_last_checkpoint  # noqa: PLC0415

    named = args.resume_from_checkpoint
    if named is None or str(named).lower() == "false":
        return None
    if str(named).lower() != "true":
        return str(named)
    last: str | None = get_last_checkpoint(args.output_dir)
    if last is None:
        raise ValueError(f"{args.output_dir} holds no checkpoint to resume from.")
    return last


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, measure validation and test, and return what was measured."""
    classes = (ModelArguments, DataArguments, TrainingArguments)
    model, data_args, args = parse(classes, sys.argv[1:] if argv is None else argv)
    data = load_data(data_args, model, args)
    set_batch(model, args)
    set_seed(args.seed)
    network = build_model(
        model.model, data.num_labels, dropout=model.dropout, drop_path=model.drop_path
    )
    trainer = build_trainer(network, data, model, args)
    if trainer.is_world_process_zero():
        weights = sum(weight.numel() for weight in network.parameters())
        print(
            f"{weights:,} weights, {len(data.train):,} images, steps of "
            f"{args.train_batch_size * args.world_size * args.gradient_accumulation_steps}, "
            f"learning rate {args.learning_rate:g}"
        )
    result = trainer.train(resume_from_checkpoint=_checkpoint(args))
    measured = dict(result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if args.save_strategy != "no":
        trainer.save_model()
    for split, images in (("validation", data.validation), ("test", data.test)):
        if images is not None:
            metrics = trainer.evaluate(images, metric_key_prefix=split)
            trainer.save_metrics(split, metrics)
            measured |= metrics
    return measured


if __name__ == "__main__":
    run_and_exit(main)
