"""Flat shards: weights laid end to end in one tensor and cut into equal ranges, one a process.

A range begins and ends anywhere, so what a process has of a weight is the end of one row, whole
rows, and the beginning of another. The sums of cut rows are added up with the processes that have
the rest of them; the totals of a weight with all that have rows of it. Which rows are cut follows
from the ranges alone, so each process numbers them like all others, without a word between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..layout import Claim, Extent, Peers, Piece, Placement, Slots, has_rows
from ..scale_invariance import ScaleInvariant, matrix_dims, rows_of_vectors, vectors_of

__all__ = ["FlatTensor", "FlatWeight", "place_flat"]


@dataclass(frozen=True)
class FlatWeight:
    """Where the elements of one weight are.

    Attributes:
        weight: the model's, which a record names.
        shape: of the whole weight.
        bounds: process `r` has its elements `bounds[r]` to `bounds[r + 1]`; the first bound is 0,
            the last the number of its elements.
        offset: where this process's elements begin in its flat tensor.
    """

    weight: Tensor
    shape: torch.Size
    bounds: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class FlatTensor:
    """What a process holds of some weights.

    Attributes:
        tensor: (n,) what the optimizer steps; what no weight claims in it is padding.
        weights: all of them, those included that this process has nothing of, in an order that all
            processes share.
        rank: which of the ranges is this process's.
        peers: those that have the others.
    """

    tensor: Tensor
    weights: tuple[FlatWeight, ...]
    rank: int
    peers: Peers


def place_flat(
    flat: FlatTensor, scale_invariant: ScaleInvariant, claim_rows: Claim, claim_segments: Claim
) -> tuple[Placement, ...]:
    """Where the rows of all weights of a flat tensor lie; see `place_dtensor` for the claims.

    Raises:
        RuntimeError: for a stack of experts whose rows do not lie side by side.
    """
    placed = (
        _place(weight, flat, scale_invariant, claim_rows, claim_segments) for weight in flat.weights
    )
    return tuple(placement for placement in placed if placement is not None)


def _place(
    weight: FlatWeight,
    flat: FlatTensor,
    scale_invariant: ScaleInvariant,
    claim_rows: Claim,
    claim_segments: Claim,
) -> Placement | None:
    """None where this process has nothing of it; its sums have their places all the same."""
    shape, bounds = weight.shape, weight.bounds
    start, end = bounds[flat.rank], bounds[flat.rank + 1]
    # A bias: never projected, so its elements need no rows, only a place in memory.
    if not has_rows(shape):
        pieces = tuple(_pieces(start, end, max(end - start, 1), weight.offset))
        return Placement(pieces=pieces, weight=weight.weight) if pieces else None
    row_dims, column_dims = matrix_dims(scale_invariant, shape)
    if row_dims != tuple(range(len(row_dims))):
        raise RuntimeError(
            f"scale_invariant={scale_invariant!r} is for weights that are whole: in a flat shard "
            f"nearly every row of a weight of shape {tuple(shape)} is cut many times; use 'auto' "
            "for it, or shard with FSDP2 (`fully_shard`)."
        )
    columns = math.prod(shape[dim] for dim in column_dims)
    # With the rows that are cut at either end; -(-a // b) rounds up.
    rows = range(start // columns, -(-end // columns) if end > start else start // columns)
    vectors = rows_of_vectors(rows, vectors_of(scale_invariant, shape))
    extent = Extent(len(rows), columns, shape.numel(), vectors)
    # By all processes' bounds, not by this one's: each must claim the same places as the others,
    # for rows that it has nothing of too.
    cut = sorted({bound // columns for bound in bounds[1:-1] if bound % columns})
    row_slots: dict[Peers, Slots] = {}
    weight_slots: dict[Peers, Slots] = {}
    if cut:
        places = claim_rows(flat.peers, len(cut))
        own = [(row - rows.start, at) for row, at in zip(cut, places, strict=True) if row in rows]
        if own:
            row_slots[flat.peers] = Slots([row for row, _ in own], [at for _, at in own])
    # A weight that lies on one process is that one's own affair.
    if sum(begin < stop for begin, stop in pairwise(bounds)) > 1:
        places = claim_segments(flat.peers, extent.segments)
        weight_slots[flat.peers] = Slots(range(extent.segments), places)
    # Not before: what it claimed keeps the places of the weights after it in step with others.
    if start == end:
        return None
    return Placement(
        extent,
        tuple(_pieces(start, end, columns, weight.offset)),
        row_slots,
        weight_slots,
        # The process that has the beginning of a row counts it.
        guests=(0,) if start % columns else (),
        weight=weight.weight,
    )


def _pieces(start: int, end: int, columns: int, offset: int) -> Iterator[Piece]:
    """A range of a weight's elements as the rest of a row, whole rows, the beginning of a row."""
    first = start // columns
    # Where whole rows begin and end; a range inside one row has none, and is its own rest.
    head = min(end, -(-start // columns) * columns)
    tail = max(head, end // columns * columns)
    for begin, stop in ((start, head), (head, tail), (tail, end)):
        if begin < stop:
            width = min(columns, stop - begin)
            shape = ((stop - begin) // width, width)
            yield Piece(begin // columns - first, offset + begin - start, shape, (width, 1))
