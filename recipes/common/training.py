"""What a training script does between building its trainer and evaluating it."""

from typing import Any

from transformers import Trainer

__all__ = ["train_and_log"]


def train_and_log(trainer: Trainer) -> dict[str, Any]:
    """Train, from a checkpoint where the arguments name one, and keep the metrics; return them.

    `--resume_from_checkpoint true` means the last checkpoint in the output folder.
    """
    resume = trainer.args.resume_from_checkpoint
    result = trainer.train(resume_from_checkpoint=resume if resume != "true" else True)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    metrics: dict[str, Any] = result.metrics
    return metrics
