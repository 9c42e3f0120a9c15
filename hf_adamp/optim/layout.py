"""Where the rows of weights lie: in memory, in the statistics buffer, on other processes.

Pure data, made from shapes and options when a plan is made. The test and the projection look at
rows only, so whatever holds a weight (one process, a DTensor, a flat shard) says here which of its
rows it has, and everything after that is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Claim",
    "Extent",
    "Layout",
    "Peers",
    "Piece",
    "Placement",
    "Segments",
    "Slots",
    "Statistic",
    "has_rows",
]


class Statistic(IntEnum):
    """The rows of the statistics buffer; each holds one number for every row of every weight.

    `step` is the displacement before projection: learning rate times update direction.
    """

    DOT = 0  # g·w
    GRAD_SQ = 1  # |g|²
    WEIGHT_SQ = 2  # |w|²
    STEP_DOT = 3  # step·w
    STEP_SQ = 4  # |step|², read only where records are kept


def has_rows(shape: torch.Size) -> bool:
    """Whether a weight of this shape takes part in the test: two dimensions or more, not empty."""
    return len(shape) > 1 and 0 not in shape


@dataclass(frozen=True)
class Extent:
    """How large a weight is.

    Attributes:
        rows: how many of its rows, or parts of rows, are here.
        columns: the elements of a whole row, on all processes.
        numel: the elements of the whole weight, on all processes.
        vectors: the rows here of each vector that the weight is declared to consist of (heads),
            negative where it is not invariant; empty where the rows may stand for themselves.
    """

    rows: int
    columns: int
    numel: int
    vectors: tuple[int, ...] = ()

    @classmethod
    def of(cls, shape: torch.Size, vectors: Sequence[int] = ()) -> Extent:
        """The extent of a weight that is whole here, its first dimension the rows."""
        # The product, not reshape's -1, which is ambiguous where a dimension is 0.
        columns = math.prod(shape[1:])
        return cls(shape[0], columns, shape[0] * columns, tuple(vectors))

    @property
    def segments(self) -> int:
        """How many vectors the weight is, where its rows do not stand for themselves."""
        return len(self.vectors) or 1


@dataclass(frozen=True)
class Piece:
    """A block of a weight in memory here, all numbers in elements.

    Attributes:
        row: the first of its rows, counted among the weight's rows here.
        offset: where it begins in the tensor that holds it.
        shape: its rows, and how much of each of them it has.
        stride: from one row to the next, and from one element of a row to the next.
    """

    row: int
    offset: int
    shape: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True)
class Peers:
    """Processes that add up statistics; equal for all weights that they share.

    Attributes:
        group: their process group.
        device_type: where tensors have to be for them to talk.
    """

    group: Any
    device_type: str


# Takes peers and a number of sums, and returns their places in what the peers add up.
Claim = Callable[[Peers, int], Sequence[int]]


@dataclass(frozen=True)
class Slots:
    """Sums that are added up with other processes: which ones here, and their places in the sum."""

    here: Sequence[int]
    there: Sequence[int]


@dataclass(frozen=True)
class Placement:
    """A weight's rows here: where they are in memory, and where their sums have their place.

    Attributes:
        extent: how many rows are here, and how large the weight is; None for what is never
            projected, a bias say.
        pieces: the blocks of memory that hold them, each row in one block; None where the tensor's
            first dimension is the rows.
        row_slots: for rows that are cut: whole only when these processes' parts are added up.
        weight_slots: for weights whose rows are spread over these processes; its numbers are those
            of the weight's segments.
        guests: rows here whose sums another process adds to the weight's totals, since a row that
            is cut must count once.
        weight: what a record names; None for the tensor itself.
    """

    extent: Extent | None = None
    pieces: tuple[Piece, ...] | None = None
    row_slots: dict[Peers, Slots] = field(default_factory=dict)
    weight_slots: dict[Peers, Slots] = field(default_factory=dict)
    guests: tuple[int, ...] = ()
    weight: Tensor | None = None

    @property
    def is_shared(self) -> bool:
        """Whether other processes have a say in this weight's decision."""
        return bool(self.row_slots or self.weight_slots)


@dataclass(frozen=True)
class Segments:
    """Which rows make a vector, where a weight is declared to consist of several (heads).

    Attributes:
        weight: (S,) int64, the weight that a segment belongs to.
        row_segment: (R,) int64, the segment that a row belongs to.
        offsets: (W + 1,) int64, where each weight's segments begin.
        free: (S,) bool, declared not to be invariant; None where none is.
    """

    weight: Tensor
    row_segment: Tensor
    offsets: Tensor
    free: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """Where the rows of each weight lie in the buffer, and the limits its cosines are held against.

    W is the number of weights, R the number of rows of all of them, and S the number of segments:
    one a weight, or one a vector where several are declared.

    Attributes:
        extents: W extents.
        row_weight: (R,) int64, the weight that a row belongs to.
        offsets: (S + 1,) int64, where each segment's rows begin.
        channel_limit: (W,) `δ / √columns`; 0 where rows are declared not to stand for themselves.
        layer_limit: (S,) `δ / √numel`.
        eps: (S,) the optimizer's eps, which keeps the norms of zero rows off zero.
        row_eps: the same for each row, (R,), or a scalar where all have the same.
        segments: None where each weight is one.
        counted: (R,) 1 for the rows that are added to their weight's totals here, 0 for those that
            another process adds; None where all are.
    """

    extents: tuple[Extent, ...]
    row_weight: Tensor
    offsets: Tensor
    channel_limit: Tensor
    layer_limit: Tensor
    eps: Tensor
    row_eps: Tensor
    segments: Segments | None = None
    counted: Tensor | None = None

    @classmethod
    def build(
        cls,
        extents: Sequence[Extent],
        deltas: Sequence[float],
        eps: Sequence[float],
        *,
        guests: Sequence[int] = (),
        dtype: torch.dtype,
        device: torch.device,
    ) -> Layout:
        """Lay out weights of these extents, one delta and one eps each, in this order.

        `guests` are the rows, numbered through all weights, that another process counts.
        """
        rows = [extent.rows for extent in extents]
        counts = [extent.segments for extent in extents]
        signed = list(chain.from_iterable(e.vectors or (e.rows,) for e in extents))
        parts = list(map(abs, signed))

        def vector(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            # Two steps: building it on an accelerator at once would wait for the copy.
            return torch.tensor(values, dtype=dtype, device="cpu").to(device, non_blocking=True)

        def owners(sizes: Sequence[int]) -> Tensor:
            indices = torch.arange(len(sizes), device=device)
            return torch.repeat_interleave(
                indices, vector(sizes, torch.int64), output_size=sum(sizes)
            )

        def starts(sizes: Sequence[int]) -> Tensor:
            return vector(list(accumulate(sizes, initial=0)), torch.int64)

        pairs = list(zip(deltas, extents, strict=True))
        row_weight = owners(rows)
        all_eps = vector(eps, dtype)
        layer_limit = vector([delta / math.sqrt(e.numel) for delta, e in pairs], dtype)
        segments = None
        if len(parts) > len(rows):
            # Rows that are elsewhere have no sign here, and need none.
            free = vector([rows < 0 for rows in signed], torch.bool) if min(signed) < 0 else None
            segments = Segments(owners(counts), owners(parts), starts(counts), free)
        return cls(
            extents=tuple(extents),
            row_weight=row_weight,
            offsets=starts(parts),
            channel_limit=vector(
                [0.0 if e.vectors else delta / math.sqrt(e.columns) for delta, e in pairs], dtype
            ),
            layer_limit=layer_limit if segments is None else layer_limit[segments.weight],
            eps=all_eps if segments is None else all_eps[segments.weight],
            row_eps=all_eps[0] if len(set(eps)) == 1 else all_eps[row_weight],
            segments=segments,
            counted=vector([float(row not in away) for row in range(sum(rows))], dtype)
            if (away := set(guests))
            else None,
        )
