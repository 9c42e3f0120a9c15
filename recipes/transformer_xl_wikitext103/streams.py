"""A stream of words as columns that are read side by side, segment after segment.

A stream of N words in B columns: column b holds the words from b·N/B on. A segment is the next
few rows of all columns; what the model remembers of a column fits its next segment. Processes
share the columns out, so each reads words that no other one reads.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .adaptive import IGNORED

__all__ = ["SegmentStream", "evaluation_stream", "training_stream"]


class SegmentStream(Dataset):
    """Segments of some columns, in order: words, the words that follow them, the segment's place.

    Args:
        inputs: words, (columns, length of a column).
        targets: the word that follows each, or -100, of the same shape.
        tgt_len: rows of a segment, >= 1; the last one may have fewer.
    """

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, tgt_len: int) -> None:
        if tgt_len < 1:
            raise ValueError(f"tgt_len={tgt_len} must be >= 1.")
        self.inputs, self.targets, self.tgt_len = inputs, targets, tgt_len

    @property
    def columns(self) -> int:
        """Number of columns that this process reads."""
        return len(self.inputs)

    def __len__(self) -> int:
        return math.ceil(self.inputs.shape[1] / self.tgt_len)

    def __getitem__(self, segment: int) -> dict[str, Any]:
        if not 0 <= segment < len(self):
            raise IndexError(segment)
        rows = slice(segment * self.tgt_len, (segment + 1) * self.tgt_len)
        return {
            "input_ids": torch.from_numpy(self.inputs[:, rows].astype(np.int64)),
            "shift_labels": torch.from_numpy(self.targets[:, rows].astype(np.int64)),
            "segment": segment,
        }

    def loader(self, *, pin_memory: bool = False) -> DataLoader:
        """Return a loader that yields the segments as they are, one after another."""
        return DataLoader(self, batch_size=1, collate_fn=_only, pin_memory=pin_memory)


def _only(batch: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return batch[0]


def training_stream(
    words: np.ndarray, columns: int, tgt_len: int, *, rank: int = 0, world: int = 1
) -> SegmentStream:
    """Return a process's columns of the training words.

    Columns have one length: less than `columns` words at the end are left out, and the last word
    of each column is only a target.

    Args:
        words: the stream, one-dimensional.
        columns: columns of all processes together.
        tgt_len: words of a column in a segment.
        rank: this process, from 0. Default: 0.
        world: number of processes, a divisor of `columns`. Default: 1.

    Raises:
        ValueError: the columns cannot be shared out, or are too short.
    """
    if columns < 1 or columns % world:
        raise ValueError(
            f"columns={columns} cannot be shared out evenly to {world} processes; use a multiple "
            f"of {world}."
        )
    height = len(words) // columns
    if height < 2:
        raise ValueError(f"{len(words):,} words do not fill columns={columns}; use fewer columns.")
    share = columns // world
    table = words[: columns * height].reshape(columns, height)[rank * share : (rank + 1) * share]
    return SegmentStream(table[:, :-1], table[:, 1:], tgt_len)


def evaluation_stream(
    words: np.ndarray, columns: int, tgt_len: int, *, eos: int = 0, rank: int = 0, world: int = 1
) -> SegmentStream:
    """Return a process's columns such that all processes together score every word once.

    Each column begins by reading the word before it; the first one reads `<eos>`. Where the words
    do not fill the last column, it is filled up with words that are not scored.

    Args:
        words: the stream, one-dimensional.
        columns: columns of all processes together; fewer of them give more words a full memory.
        tgt_len: words of a column in a segment.
        eos: number of `<eos>`. Default: 0.
        rank: this process, from 0. Default: 0.
        world: number of processes; one without a column has an empty stream. Default: 1.

    Raises:
        ValueError: there are fewer words than columns.
    """
    if not 1 <= columns <= len(words):
        raise ValueError(f"columns={columns} must be in [1, {len(words):,}], the number of words.")
    height = math.ceil(len(words) / columns)
    targets = np.full(columns * height, IGNORED, np.int32)
    targets[: len(words)] = words
    inputs = np.concatenate(([eos], np.maximum(targets[:-1], 0)))
    own = np.array_split(np.arange(columns), world)[rank]
    shape = (columns, height)
    return SegmentStream(inputs.reshape(shape)[own], targets.reshape(shape)[own], tgt_len)
