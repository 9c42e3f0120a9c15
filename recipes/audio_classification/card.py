"""The model card: what the Hub shows and searches, and how to use the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import Trainer

__all__ = ["write_card"]

# Metrics that go into the card, and what the Hub calls them.
REPORTED = {
    "roc_auc": ("roc_auc", "macro ROC-AUC"),
    "pr_auc": ("average_precision", "macro PR-AUC"),
    "accuracy": ("accuracy", "accuracy"),
    "f1": ("f1", "instance F1"),
}
TEXT = """# {title}

{model} for {task}, trained with {optimizer} by the audio classification recipe of
[hf-adamp](https://arxiv.org/abs/2006.08217).

| {titles} |
|{rules}|
| {cells} |

on the test split: {clips:,} clips, {heard}.

## Use

```python
import soundfile, soxr
from transformers import pipeline

classifier = pipeline("audio-classification", model="{name}"{trust})
waveform, rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)
print(classifier(soxr.resample(waveform.mean(axis=1), rate, {rate})))
```

Trained on inputs of {samples:,} samples at {rate:,} Hz. The labels: {labels}.

## Training

{settings}
"""


def write_card(
    folder: Path,
    trainer: Trainer,
    *,
    task: str,
    base: str | None,
    dataset: str,
    on_hub: bool,
    metrics: Mapping[str, float],
    clips: int,
    chunks: int,
    input_length: int,
    optimizer: str,
) -> None:
    """Write README.md with metadata, results and an example.

    Args:
        folder: where the model was saved.
        trainer: that trained it.
        task: a key of `TASKS`.
        base: the model it was fine-tuned from; None is from scratch.
        dataset: its name; with `on_hub` an id of the Hub.
        on_hub: whether `dataset` is such an id.
        metrics: of the test split, without prefix.
        clips: number of test clips.
        chunks: windows averaged a clip.
        input_length: samples of a window.
        optimizer: as named on the command line.
    """
    config, args = trainer.model.config, trainer.args
    found = [(kind, name, metrics[key]) for key, (kind, name) in REPORTED.items() if key in metrics]
    name = args.hub_model_id or folder.name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-classification",
        base_model=base,
        datasets=[dataset] if on_hub else None,
        metrics=[kind for kind, _, _ in found],
        tags=["audio-classification", task.replace("_", "-"), config.model_type, optimizer],
        model_name=name,
        eval_results=[_result(dataset, *one) for one in found],
    )
    text = TEXT.format(
        title=name,
        name=name,
        model=f"[{base}](https://huggingface.co/{base})" if base else "A Harmonic CNN",
        task=task.replace("_", " "),
        optimizer=optimizer,
        **_table(found),
        clips=clips,
        heard=_heard(chunks),
        # Its code travels with it; other models' is in Transformers.
        trust="" if base else ", trust_remote_code=True",
        rate=trainer.processing_class.sampling_rate,
        samples=input_length,
        labels=_list(list(config.id2label.values())),
        settings=_settings(trainer, optimizer),
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def _result(dataset: str, kind: str, name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="audio-classification",
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split="test",
        metric_type=kind,
        metric_name=name,
        metric_value=round(value, 6),
    )


def _heard(chunks: int) -> str:
    return f"{chunks} chunks each, their probabilities averaged" if chunks > 1 else "one chunk each"


def _table(found: Sequence[tuple[str, str, float]]) -> dict[str, str]:
    return {
        "titles": " | ".join(title for _, title, _ in found),
        "rules": "|".join("---" for _ in found),
        "cells": " | ".join(f"{value:.4f}" for _, _, value in found),
    }


def _list(names: Sequence[str], shown: int = 60) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _settings(trainer: Trainer, optimizer: str) -> str:
    args = trainer.args
    settings = {
        "optimizer": optimizer + (f" ({args.optim_args})" if args.optim_args else ""),
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "steps": trainer.state.global_step,
        "seed": args.seed,
    }
    return "\n".join(f"- {name}: {value}" for name, value in settings.items())
