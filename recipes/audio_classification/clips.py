"""What a model is shown of a clip: a random crop in training, 16 equal chunks in evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import FeatureExtractionMixin

__all__ = ["Collator", "EqualChunks", "RandomCrops", "average_chunks"]

LARGEST = 32767  # of 16 bits


class _Windows(torch.utils.data.Dataset):
    """Rows of `decode_all`, as float32 of one length."""

    def __init__(self, clips: Dataset, length: int) -> None:
        self.clips = clips.with_format("numpy")
        self.length = length

    def window(self, samples: np.ndarray, start: int) -> np.ndarray:
        """Cut from `start` on; a negative start is silence before the clip."""
        cut = samples[max(start, 0) : start + self.length]
        waveform = np.zeros(self.length, dtype=np.float32)
        offset = max(-start, 0)
        waveform[offset : offset + cut.size] = cut.astype(np.float32) / LARGEST
        return waveform


class RandomCrops(_Windows):
    """A crop from anywhere in the clip; a short clip lies anywhere in silence.

    Args:
        clips: rows with `samples` and `labels`.
        length: samples a crop.
    """

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one crop, from torch's generator, so that `--seed` decides it."""
        row = self.clips[int(index)]
        spare = len(row["samples"]) - self.length
        low, high = min(spare, 0), max(spare, 0)
        start = int(torch.randint(low, high + 1, ()).item())
        return {"waveform": self.window(row["samples"], start), "labels": row["labels"]}


class EqualChunks(_Windows):
    """`chunks` windows a clip, equally far apart from its beginning on.

    Won et al. average their probabilities. The last one ends a step before the clip's end, as
    theirs does: the step is (samples - length) // chunks.

    Args:
        clips: rows with `samples` and `labels`.
        length: samples a chunk.
        chunks: how many a clip.
    """

    def __init__(self, clips: Dataset, length: int, chunks: int) -> None:
        super().__init__(clips, length)
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.clips) * self.chunks

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return chunk `index % chunks` of clip `index // chunks`."""
        clip, chunk = divmod(int(index), self.chunks)
        row = self.clips[clip]
        step = max(len(row["samples"]) - self.length, 0) // self.chunks
        # One chunk is the middle of a clip, not its beginning.
        start = chunk * step if self.chunks > 1 else (len(row["samples"]) - self.length) // 2
        return {"waveform": self.window(row["samples"], start), "labels": row["labels"]}


class Collator:
    """Give the waveforms to the model's own feature extractor, and stack the labels.

    Args:
        extractor: of any audio model.
    """

    def __init__(self, extractor: FeatureExtractionMixin) -> None:
        self.extractor = extractor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the model's inputs, and `labels`."""
        batch = self.extractor(
            [row["waveform"] for row in rows],
            sampling_rate=self.extractor.sampling_rate,
            return_tensors="pt",
            padding=True,
        )
        labels = torch.from_numpy(np.stack([np.asarray(row["labels"]) for row in rows]))
        return {**batch, "labels": labels}


def average_chunks(
    logits: np.ndarray, labels: np.ndarray, chunks: int, *, several: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return each clip's mean probabilities, (clips, labels), and its labels.

    Args:
        logits: of every chunk, those of a clip in a row, (clips · chunks, labels).
        labels: of every chunk.
        chunks: a clip.
        several: whether a clip may have several labels: a sigmoid each, instead of a softmax.

    Raises:
        ValueError: the rows are not that many chunks of the same clips.
    """
    scores = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    scores = scores.sigmoid() if several else scores.softmax(-1)
    if len(scores) % chunks:
        raise ValueError(f"{len(scores)} chunks are no multiple of chunks={chunks} a clip.")
    grouped = labels.reshape(-1, chunks, *labels.shape[1:])
    if (grouped != grouped[:, :1]).any():
        raise ValueError("chunks with different labels stand where those of one clip should.")
    return scores.unflatten(0, (-1, chunks)).mean(1).numpy(), grouped[:, 0]
