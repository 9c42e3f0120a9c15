r"""Train a classifier against an attacker with any optimizer of `--optim`.

    ADVERSARIAL=recipes/adversarial_training
    accelerate launch -m hf_adamp -m recipes.adversarial_training.train \
        $ADVERSARIAL/configs/full.yaml $ADVERSARIAL/configs/linf_4.yaml --optim adamp

Configurations come first, options after them overrule them.
"""

import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn
from transformers import ViTImageProcessor, set_seed

from hf_adamp import ProjectionLog
from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse
from recipes.common.matched_trainer import MatchedArguments
from recipes.common.small_convnet import SmallConvNet
from recipes.common.training import train_and_log

from .attacks import NORMS, PARTS, ThreatModel, survivors
from .batches import Collator, ImageDataset
from .configuration_wide_resnet import CIFAR10_MEAN, CIFAR10_STD, WideResNetConfig
from .modeling_wide_resnet import WideResNetForImageClassification
from .sources import SOURCES, Images, Source, first, load
from .trainer import OBJECTIVES, AdversarialTrainer, InnerAttack

MODELS = ("wide_resnet", "small_convnet")


@dataclass
class ModelArguments:
    """Which network; all but the first field are the Wide-ResNet's."""

    model: str = field(default="wide_resnet", metadata={"help": "or small_convnet, of the demo."})
    depth: int = field(default=28, metadata={"help": "6·n + 4."})
    widen_factor: int = field(default=10, metadata={"help": "Times 16, 32 and 64 channels."})
    strides: list[int] = field(
        default_factory=lambda: [1, 2, 2], metadata={"help": "Of the three stages."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Within a block."})
    channels_last: bool = field(
        default=True, metadata={"help": "Lay the weights out so; much faster, same numbers."}
    )


@dataclass
class DataArguments:
    """The images."""

    source: str = field(default="hub", metadata={"help": ", ".join(SOURCES)})
    data_dir: str | None = field(
        default=None, metadata={"help": "The folder; for --source hub an id, or a copy of it."}
    )
    validation_images: int = field(
        default=1000, metadata={"help": "Kept back from the training set, to choose by."}
    )
    train_images: int | None = field(
        default=None, metadata={"help": "So many only, of each class alike; None is all."}
    )
    test_images: int | None = field(
        default=None, metadata={"help": "So many of the test only; None is all."}
    )
    sizes: bool = field(
        default=True, metadata={"help": "Whether CIFAR-10 must have the published counts."}
    )
    padding: int = field(default=4, metadata={"help": "Around an image before a random crop."})
    flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})


@dataclass
class AttackArguments:
    """The attacker, in training and in evaluation."""

    norm: str = field(default="linf", metadata={"help": ", ".join(NORMS)})
    radius: str = field(default="8/255", metadata={"help": "A number or a fraction, of [0, 1]."})
    steps: int = field(default=10, metadata={"help": "Of the training's attack."})
    step_size: str | None = field(default=None, metadata={"help": "None is 2.5·radius/steps."})
    objective: str = field(default="pgd", metadata={"help": ", ".join(OBJECTIVES)})
    trades_beta: float = field(default=6.0, metadata={"help": "Weight of the divergence."})
    test_steps: int = field(default=10, metadata={"help": "Of the evaluation's PGD."})
    strong_attacks: list[str] = field(
        default_factory=list, metadata={"help": f"In order: {', '.join(PARTS)}."}
    )
    strong_images: int | None = field(
        default=None, metadata={"help": "So many of the test only; None is all."}
    )
    strong_steps: int = field(default=100, metadata={"help": "Of the strong gradient attacks."})
    strong_queries: int = field(default=5000, metadata={"help": "Of the square attack."})

    def inner(self) -> InnerAttack:
        """Return the training's attack, checked."""
        return InnerAttack(
            ThreatModel(self.norm, float(Fraction(self.radius))),
            steps=self.steps,
            test_steps=self.test_steps,
            step_size=None if self.step_size is None else float(Fraction(self.step_size)),
            objective=self.objective,
            trades_beta=self.trades_beta,
        )


def build_model(arguments: ModelArguments, source: Source) -> nn.Module:
    """Return an untrained network for the images of a source."""
    channels, size = source.splits["train"].pixels.shape[1:3]
    if arguments.model == "small_convnet":
        return SmallConvNet(num_labels=len(source.names), in_channels=channels)
    coloured = channels == 3
    return WideResNetForImageClassification(
        WideResNetConfig(
            depth=arguments.depth,
            widen_factor=arguments.widen_factor,
            strides=arguments.strides,
            dropout=arguments.dropout,
            num_channels=channels,
            image_size=size,
            image_mean=CIFAR10_MEAN if coloured else [0.5],
            image_std=CIFAR10_STD if coloured else [0.5],
            id2label=dict(enumerate(source.names)),
            label2id={name: number for number, name in enumerate(source.names)},
        )
    )


def build_trainer(
    model: nn.Module,
    source: Source,
    data: DataArguments,
    attack: InnerAttack,
    args: MatchedArguments,
) -> AdversarialTrainer:
    """Put model, images and attack together."""
    # Pixels and a number are no argument of any model: the collator turns them into its inputs.
    args.remove_unused_columns = False
    height, width = source.splits["train"].pixels.shape[-2:]
    processor = ViTImageProcessor(size={"height": height, "width": width}, do_normalize=False)
    train = first(source.splits["train"], data.train_images)
    return AdversarialTrainer(
        model,
        args,
        attack=attack,
        data_collator=Collator(data.padding, data.flip),
        train_dataset=ImageDataset(train, augment=True),
        eval_dataset=ImageDataset(source.splits["validation"]),
        processing_class=processor,
        callbacks=[ProjectionLog(jsonl=Path(args.output_dir) / "projection.jsonl", per_kind=False)],
    )


def evaluate(trainer: AdversarialTrainer, name: str, images: Images) -> dict[str, float]:
    """Score a split by PGD."""
    metrics = trainer.evaluate(ImageDataset(images), metric_key_prefix=name)
    trainer.log_metrics(name, metrics)
    trainer.save_metrics(name, metrics)
    return metrics


def evaluate_test(
    trainer: AdversarialTrainer, images: Images, attack: AttackArguments
) -> dict[str, float]:
    """Score the test by PGD, and by the strong attacks on one process."""
    measures = evaluate(trainer, "test", images)
    if attack.strong_attacks and trainer.is_world_process_zero():
        few = first(images, attack.strong_images)
        shares = survivors(
            trainer.accelerator.unwrap_model(trainer.model),
            few.pixels.float() / 255,
            few.labels,
            trainer.attack.threat,
            parts=attack.strong_attacks,
            steps=attack.strong_steps,
            queries=attack.strong_queries,
            progress=not trainer.args.disable_tqdm,
        )
        strong = {f"strong_after_{part}": share for part, share in shares.items()}
        strong["strong_accuracy"] = shares[attack.strong_attacks[-1]]
        strong["strong_images"] = len(few.labels)
        trainer.log_metrics("strong", strong)
        trainer.save_metrics("strong", strong)
        measures |= strong
    return measures


def run(
    model_args: ModelArguments,
    data: DataArguments,
    attack: AttackArguments,
    args: MatchedArguments,
    *,
    test: bool = True,
) -> dict[str, float]:
    """Train and evaluate; return what it came to, and leave model and measures in the folder.

    Args:
        model_args: the network.
        data: the images.
        attack: the attacker.
        args: the training.
        test: whether to look at the test set, which a search must not. Default: True.

    Raises:
        ValueError: an option is out of its range; before any data is read.
    """
    inner = attack.inner()
    if model_args.model not in MODELS:
        raise ValueError(f"model={model_args.model!r} is unknown; known: {', '.join(MODELS)}.")
    unknown = set(attack.strong_attacks) - set(PARTS)
    if unknown:
        raise ValueError(
            f"strong_attacks has unknown parts {', '.join(sorted(unknown))}; known parts: "
            f"{', '.join(PARTS)}."
        )
    with args.main_process_first(desc="read the images"):
        source = load(
            data.source, data.data_dir, validation=data.validation_images, sizes=data.sizes
        )
    set_seed(args.seed)
    layout = torch.channels_last if model_args.channels_last else torch.contiguous_format
    model = build_model(model_args, source).to(memory_format=layout)
    trainer = build_trainer(model, source, data, inner, args)
    if trainer.is_world_process_zero():
        counts = ", ".join(f"{len(images.labels):,} {n}" for n, images in source.splits.items())
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"{weights:,} weights, {len(source.names)} classes, images: {counts}")
    trained = train_and_log(trainer)
    model.to(memory_format=torch.contiguous_format)
    trainer.save_model()
    trainer.save_state()
    measures = trained | evaluate(trainer, "validation", source.splits["validation"])
    if test:
        measures |= evaluate_test(trainer, first(source.splits["test"], data.test_images), attack)
    return measures


def main(argv: list[str] | None = None) -> None:
    """Read the options and run."""
    classes = (ModelArguments, DataArguments, AttackArguments, MatchedArguments)
    run(*parse(classes, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_and_exit(main)
