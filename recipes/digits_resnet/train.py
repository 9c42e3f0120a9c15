"""Train a small ResNet on scikit-learn's handwritten digits with any optimizer of `--optim`.

    python -m hf_adamp recipes/digits_resnet/train.py --optim adamp --output_dir runs/digits/adamp

The 1,797 images of 8x8 pixels install with scikit-learn, so nothing is downloaded. They are split
once, stratified by digit and with a seed of its own, into 1,257 for training, 180 for validation
and 360 for the test; `--seed` changes the initial weights and the order of the batches only.
"""

from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from sklearn.datasets import load_digits
from transformers import (
    EvalPrediction,
    HfArgumentParser,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_adamp import ProjectionLog
from hf_adamp.integration.process_exit import run_and_exit

METRIC = Path(__file__).parent / "metrics" / "accuracy"
BRIGHTEST = 16  # scikit-learn's digits hold 0 to 16
SPLIT_SEED = 20060  # of the data only: every run sees the same three sets


@dataclass
class ModelArguments:
    """The size of the network, and of the images it is given."""

    image_size: int = field(
        default=32, metadata={"help": "Pixels a side after enlarging; the stem divides it by 4."}
    )
    hidden_sizes: list[int] = field(
        default_factory=lambda: [32, 64, 128], metadata={"help": "Channels of each stage."}
    )
    depths: list[int] = field(
        default_factory=lambda: [2, 2, 2], metadata={"help": "Residual layers of each stage."}
    )


def load_splits() -> DatasetDict:
    """Return the digits as train, validation and test sets with columns `image` and `label`."""
    digits = load_digits()
    columns = {"image": digits.images.astype(np.float32).tolist(), "label": digits.target.tolist()}
    names = [str(name) for name in digits.target_names]
    whole = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=names))
    by_label = {"seed": SPLIT_SEED, "stratify_by_column": "label"}
    rest = whole.train_test_split(test_size=360, **by_label)
    train = rest["train"].train_test_split(test_size=180, **by_label)
    return DatasetDict(train=train["train"], validation=train["test"], test=rest["test"])


def preprocess(image: list[list[float]], size: int) -> torch.Tensor:
    """Scale one 8x8 image to [-1, 1] and enlarge it, as (1, size, size)."""
    pixels = torch.tensor(image)[None, None] * (2 / BRIGHTEST) - 1
    return torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear")[0]


def build_model(arguments: ModelArguments) -> ResNetForImageClassification:
    """Build the ResNet: each convolution but none of the classifier feeds a BatchNorm."""
    config = ResNetConfig(
        num_channels=1,
        embedding_size=arguments.hidden_sizes[0],
        hidden_sizes=arguments.hidden_sizes,
        depths=arguments.depths,
        layer_type="basic",
        num_labels=10,
    )
    return ResNetForImageClassification(config)


def main() -> None:
    """Train, then evaluate the last weights on the validation and the test set."""
    parser = HfArgumentParser((ModelArguments, TrainingArguments))
    model_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    splits = load_splits()
    splits = splits.map(
        lambda row: {"pixel_values": preprocess(row["image"], model_args.image_size)},
        remove_columns="image",
        desc="preprocess",
    ).with_format("torch")

    accuracy = evaluate.load(str(METRIC))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        classes = prediction.predictions.argmax(axis=-1)
        return accuracy.compute(predictions=classes, references=prediction.label_ids)

    log = Path(training_args.output_dir) / "projection.jsonl"
    trainer = Trainer(
        model=build_model(model_args),
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        compute_metrics=compute_metrics,
        callbacks=[ProjectionLog(jsonl=log, per_kind=False)],
    )
    train_metrics = trainer.train().metrics
    trainer.log_metrics("train", train_metrics)
    trainer.save_metrics("train", train_metrics)
    for split in ("validation", "test"):
        metrics = trainer.evaluate(splits[split], metric_key_prefix=split)
        trainer.log_metrics(split, metrics)
        trainer.save_metrics(split, metrics)


if __name__ == "__main__":
    run_and_exit(main)
