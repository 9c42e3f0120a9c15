r"""Train an audio classifier on one of three tasks with any optimizer of `--optim`.

    AUDIO=recipes/audio_classification
    accelerate launch -m hf_adamp -m recipes.audio_classification.train \
        $AUDIO/configs/keyword_spotting.yaml --data_dir speech_commands_v0.02

Configurations come first, options after them overrule them. `--model` is the Harmonic CNN, or any
audio model of the Hub, such as facebook/wav2vec2-base.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    EvalPrediction,
    FeatureExtractionMixin,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from hf_adamp import ProjectionLog
from hf_adamp.integration.process_exit import run_and_exit
from recipes.common.arguments import parse
from recipes.common.training import train_and_log

from .adam_then_sgd import published_schedule
from .clips import Collator, EqualChunks, RandomCrops, average_chunks
from .configuration_harmonic_cnn import HarmonicCnnConfig
from .decoding import decode_all
from .feature_extraction_harmonic_cnn import HarmonicCnnFeatureExtractor
from .modeling_harmonic_cnn import HarmonicCnnForAudioClassification
from .pictures import plot_confusions, plot_curves
from .sources import SOURCES, load
from .tasks import TASKS, Task, first_logits
from .trainer import AudioTrainer

HARMONIC_CNN = "harmonic_cnn"


@dataclass
class ModelArguments:
    """Which model; all but the first field are the Harmonic CNN's, None is the task's own."""

    model: str = field(
        default=HARMONIC_CNN,
        metadata={"help": f"{HARMONIC_CNN}, or an audio model: an id of the Hub, or a folder."},
    )
    conv_channels: int = field(default=128, metadata={"help": "Width of the first blocks."})
    n_fft: int = field(default=513, metadata={"help": "Length of the window."})
    hop_length: int | None = field(default=None, metadata={"help": "Samples between frames."})
    time_pools: list[int] | None = field(default=None, metadata={"help": "Pooling along time."})
    learn_f0: bool = field(default=False, metadata={"help": "Train the centre frequencies, too."})
    dropout: float = field(default=0.5, metadata={"help": "Before the last layer."})
    adam_then_sgd: bool = field(
        default=False, metadata={"help": "The published schedule in place of --optim."}
    )


@dataclass
class DataArguments:
    """The task and its clips."""

    task: str = field(metadata={"help": ", ".join(TASKS)})
    source: str = field(metadata={"help": ", ".join(SOURCES)})
    data_dir: str = field(
        metadata={"help": "The folder; for --source hub ID[:CONFIGURATION[:REVISION]]."}
    )
    input_length: int | None = field(
        default=None, metadata={"help": "Samples the model sees at once; None is the task's."}
    )
    chunks: int | None = field(
        default=None, metadata={"help": "Windows averaged in evaluation; None is the task's."}
    )
    threshold: float = field(default=0.1, metadata={"help": "Of sound events, for F1."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that decode."})


def build_model(
    arguments: ModelArguments, task: Task, names: list[str], input_length: int
) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """Return the model with the task's labels, and its feature extractor."""
    labels: dict[str, Any] = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": task.problem_type,
    }
    if arguments.model != HARMONIC_CNN:
        model = AutoModelForAudioClassification.from_pretrained(
            arguments.model, ignore_mismatched_sizes=True, **labels
        )
        return model, AutoFeatureExtractor.from_pretrained(arguments.model)
    config = HarmonicCnnConfig(
        n_fft=arguments.n_fft,
        hop_length=arguments.hop_length or task.hop_length,
        time_pools=arguments.time_pools or task.time_pools,
        learn_f0=arguments.learn_f0,
        conv_channels=arguments.conv_channels,
        dropout=arguments.dropout,
        **labels,
    )
    if input_length < config.min_samples:
        raise ValueError(
            f"input_length={input_length} is below the {config.min_samples} samples which "
            f"time_pools={config.time_pools} need at hop_length={config.hop_length}."
        )
    extractor = HarmonicCnnFeatureExtractor(
        sampling_rate=config.sample_rate, min_length=input_length
    )
    return HarmonicCnnForAudioClassification(config), extractor


def prepare(
    data: DataArguments, args: TrainingArguments, rate: int, shortest: int
) -> tuple[DatasetDict, list[str]]:
    """Find the clips and decode them; one process does, the others find them in the cache."""
    task = TASKS[data.task]
    with args.main_process_first(desc="decode the audio"):
        source = load(data.source, data.data_dir, several=task.several)
        decoded = {
            name: decode_all(
                split,
                rate=rate,
                shortest=shortest,
                num_proc=data.num_proc,
                name=name,
                shown=args.process_index == 0,
            )
            for name, split in source.splits.items()
        }
    return DatasetDict(decoded), source.names


def build_trainer(
    model: PreTrainedModel,
    extractor: FeatureExtractionMixin,
    clips: DatasetDict,
    data: DataArguments,
    args: TrainingArguments,
    model_args: ModelArguments,
) -> AudioTrainer:
    """Put model, clips and metric together."""
    task = TASKS[data.task]
    length, chunks = data.input_length or task.input_length, data.chunks or task.chunks

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return task.score(prediction, chunks, data.threshold)

    # Waveforms are no argument of any model: the collator turns them into its inputs.
    args.remove_unused_columns = False
    trainer = AudioTrainer(
        model,
        args,
        data_collator=Collator(extractor),
        train_dataset=RandomCrops(clips["train"], length),
        eval_dataset=EqualChunks(clips["validation"], length, chunks),
        processing_class=extractor,
        compute_loss_func=task.loss,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=first_logits,
        callbacks=[ProjectionLog(jsonl=Path(args.output_dir) / "projection.jsonl", per_kind=False)],
        card=describe(model_args, data, args),
    )
    if model_args.adam_then_sgd:
        batches = len(trainer.get_train_dataloader())
        updates = -(-batches // args.gradient_accumulation_steps)
        total = args.max_steps if args.max_steps > 0 else round(updates * args.num_train_epochs)
        trainer.optimizer, trainer.lr_scheduler = published_schedule(
            model, lr=args.learning_rate, weight_decay=args.weight_decay, total_steps=total
        )
    return trainer


def evaluate_splits(
    trainer: AudioTrainer, clips: DatasetDict, data: DataArguments, names: list[str]
) -> None:
    """Score validation and test, and keep the test's probabilities for the pictures."""
    task = TASKS[data.task]
    length, chunks = data.input_length or task.input_length, data.chunks or task.chunks
    for split in ("validation", "test"):
        dataset = EqualChunks(clips[split], length, chunks)
        output = trainer.predict(dataset, metric_key_prefix=split)
        trainer.log_metrics(split, output.metrics)
        trainer.save_metrics(split, output.metrics)
    measured = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
    trainer.card |= {"metrics": measured, "clips": len(clips["test"])}
    if trainer.is_world_process_zero():
        scores, labels = average_chunks(
            output.predictions, output.label_ids, chunks, several=task.several
        )
        file = Path(trainer.args.output_dir) / "test_predictions.npz"
        kept = {"scores": scores, "labels": labels, "names": np.array(names)}
        np.savez_compressed(file, **kept)
        print(f"picture: {_draw(trainer, kept, several=task.several)}")


def _draw(trainer: AudioTrainer, kept: dict[str, np.ndarray], *, several: bool) -> Path:
    """Draw which class is taken for which, or the curves of several labels a clip."""
    folder, label = Path(trainer.args.output_dir), str(trainer.card["optimizer"])
    if several:
        return plot_curves({label: [kept]}, folder / "curves.png", "Test split")
    return plot_confusions({label: [kept]}, folder / "confusion.png")


def describe(
    model_args: ModelArguments, data: DataArguments, args: TrainingArguments
) -> dict[str, Any]:
    """Return what the model card says and the model does not know."""
    task = TASKS[data.task]
    on_hub = data.source == "hub"
    return {
        "task": data.task,
        "base": None if model_args.model == HARMONIC_CNN else model_args.model,
        "dataset": data.data_dir.partition(":")[0] if on_hub else data.source,
        "on_hub": on_hub,
        "chunks": data.chunks or task.chunks,
        "input_length": data.input_length or task.input_length,
        "optimizer": "adam_then_sgd" if model_args.adam_then_sgd else str(args.optim.value),
    }


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate on validation and test, and leave model, extractor and card in the folder."""
    classes = (ModelArguments, DataArguments, TrainingArguments)
    model_args, data, args = parse(classes, sys.argv[1:] if argv is None else argv)
    if data.task not in TASKS:
        raise ValueError(f"task={data.task!r} is unknown; known tasks: {', '.join(TASKS)}.")
    task = TASKS[data.task]
    length = data.input_length or task.input_length
    rate = 16000
    if model_args.model != HARMONIC_CNN:
        rate = AutoFeatureExtractor.from_pretrained(model_args.model).sampling_rate
    clips, names = prepare(data, args, rate, length)
    set_seed(args.seed)
    model, extractor = build_model(model_args, task, names, length)
    trainer = build_trainer(model, extractor, clips, data, args, model_args)
    if trainer.is_world_process_zero():
        counts = ", ".join(f"{len(split):,} for {name}" for name, split in clips.items())
        print(f"{model.num_parameters():,} weights, {len(names)} labels, clips: {counts}")
    train_and_log(trainer)
    trainer.save_model()
    trainer.save_state()
    evaluate_splits(trainer, clips, data, names)
    if args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()


if __name__ == "__main__":
    run_and_exit(main)
