"""The three tasks: how clips are cut, which answer counts, and how it is scored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from torch import Tensor
from torch.nn import functional
from transformers import EvalPrediction

from .clips import average_chunks

__all__ = ["TASKS", "Task"]

METRICS = Path(__file__).parent / "metrics"


@dataclass(frozen=True)
class Task:
    """What a task fixes; all but the metric can be changed by options.

    Attributes:
        several: whether a clip may have several labels.
        input_length: samples at 16 kHz that the model sees at once.
        chunks: windows over which an evaluated clip's probabilities are averaged.
        metric: a folder of `metrics`.
        time_pools: pooling of the Harmonic CNN along time.
        hop_length: of the Harmonic CNN; None is half of a window, as published.
    """

    several: bool
    input_length: int
    chunks: int
    metric: str
    time_pools: tuple[int, ...]
    hop_length: int | None = None

    @property
    def problem_type(self) -> str:
        """The name that Transformers has for it."""
        return "multi_label_classification" if self.several else "single_label_classification"

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Cross-entropy of the classes, or of each label by itself.

        Wav2Vec2, HuBERT and others only know the first, so this serves for every model.
        """
        logits = outputs["logits"].float()
        if self.several:
            entropy = functional.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="sum"
            )
        else:
            entropy = functional.cross_entropy(logits, labels, reduction="sum")
        # The Trainer counts the labels of all accumulated batches, each tag as one.
        return entropy / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def score(
        self, prediction: EvalPrediction, chunks: int, threshold: float
    ) -> dict[str, float | int]:
        """Average the chunks of each clip, and compute the task's metric."""
        scores, labels = average_chunks(
            prediction.predictions, prediction.label_ids, chunks, several=self.several
        )
        # In memory: two runs at once would wait for each other's file.
        metric = evaluate.load(str(METRICS / self.metric), keep_in_memory=True)
        options = {"threshold": threshold} if self.metric == "instance_f1" else {}
        return metric.compute(predictions=scores, references=labels, **options)


TASKS = {
    "music_tagging": Task(True, 80000, 16, "tag_ranking", (2, 2, 2, 2, 2, 3, 3)),
    # The published hop of 256 leaves 63 frames of a second, and six halvings need 64.
    "keyword_spotting": Task(
        False, 16000, 1, "keyword_accuracy", (2, 2, 2, 2, 2, 2, 1), hop_length=128
    ),
    "sound_event_tagging": Task(True, 48000, 16, "instance_f1", (2,) * 7),
}


def first_logits(logits: Any, labels: Any) -> Tensor | np.ndarray:
    """Return the logits where a model also returns its hidden states."""
    return logits[0] if isinstance(logits, tuple | list) else logits
