"""What processes that share weights add up: one all-reduce for cut rows, one for spread weights.

It is a few floats a row or a weight, for all weights at once, for each dimension of a mesh. What is
added up, and in which order, depends on the weights alone: not on gradients, which a process may
lack, nor on their values. So ranks cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from ..layout import Extent, Layout, Peers, Placement, Slots, Statistic
from ..scale_invariance import ScaleInvariant
from .dtensor import is_sharded, place_dtensor
from .flat import FlatTensor, place_flat

__all__ = ["Reducer", "Share", "shares_of_rows", "shares_of_weights"]

# A segment's statistics, and how many of its rows fail the test.
_TOTALS = len(Statistic) + 1


@dataclass(frozen=True)
class Share:
    """What a section has of the sums of these peers: columns of its buffer, and their places."""

    peers: Peers
    here: Tensor
    there: Tensor


@dataclass
class Reducer:
    """Adds up statistics between the processes that share weights.

    Made from all weights that are sharded, whether or not they have a gradient in a step.

    Attributes:
        placements: of each sharded weight, or of all that a flat tensor holds, by its identity.
        row_counts: how many rows these peers add up.
        weight_counts: how many segments.
        dtype: the precision of the sums.
    """

    placements: dict[int, tuple[Placement, ...]] = field(default_factory=dict)
    row_counts: dict[Peers, int] = field(default_factory=dict)
    weight_counts: dict[Peers, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(
        cls,
        params: Iterable[tuple[Tensor, ScaleInvariant]],
        flats: Iterable[tuple[FlatTensor, ScaleInvariant]] = (),
    ) -> Reducer | None:
        """The reducer of the weights among these that are sharded, None where none is."""
        reducer = cls()
        # Weights claim their places in the order of the param groups, which all processes share.
        claims = reducer._claim_rows, reducer._claim_segments
        placed: list[tuple[Tensor, tuple[Placement, ...]]] = [
            (param, (place_dtensor(param, scale_invariant, *claims),))
            for param, scale_invariant in params
            if is_sharded(param)
        ]
        placed += [(flat.tensor, place_flat(flat, declared, *claims)) for flat, declared in flats]
        for tensor, placements in placed:
            reducer.placements[id(tensor)] = placements
            # One buffer serves all weights, so the most precise of them decides.
            if tensor.dtype == torch.float64:
                reducer.dtype = torch.float64
        return reducer if reducer.placements else None

    def _claim_rows(self, peers: Peers, count: int) -> Sequence[int]:
        return _claim(self.row_counts, peers, count)

    def _claim_segments(self, peers: Peers, count: int) -> Sequence[int]:
        return _claim(self.weight_counts, peers, count)

    def add_rows(self, sections: Sequence[tuple[Sequence[Share], Tensor]]) -> None:
        """Make the (5, R) statistics of cut rows whole, in place."""
        for peers, count in self.row_counts.items():
            self._all_reduce(peers, len(Statistic), count, sections)

    def add_weights(self, sections: Sequence[tuple[Sequence[Share], Tensor]]) -> None:
        """Make the (6, S) totals of weights whose rows are spread whole, in place."""
        for peers, count in self.weight_counts.items():
            self._all_reduce(peers, _TOTALS, count, sections)

    def _all_reduce(
        self,
        peers: Peers,
        height: int,
        width: int,
        sections: Sequence[tuple[Sequence[Share], Tensor]],
    ) -> None:
        # Where a process has nothing for a weight its zeros change no sum. With CPU offload the
        # weights' device is not the one that the processes talk on.
        buffer = torch.zeros(height, width, dtype=self.dtype, device=peers.device_type)
        parts = [
            (sums, share) for shares, sums in sections for share in shares if share.peers == peers
        ]
        for sums, share in parts:
            buffer.index_copy_(1, share.there, sums.index_select(1, share.here).to(buffer))
        # In every step, even with nothing to add: whether to come must not depend on a gradient.
        distributed.all_reduce(buffer, group=peers.group)
        for sums, share in parts:
            sums.index_copy_(1, share.here, buffer.index_select(1, share.there).to(sums))


def _claim(counts: dict[Peers, int], peers: Peers, count: int) -> Sequence[int]:
    begin = counts.get(peers, 0)
    counts[peers] = begin + count
    return range(begin, begin + count)


def shares_of_rows(placements: Sequence[Placement], device: torch.device) -> list[Share]:
    """What a section with these weights, in this order, has of the sums over rows."""
    rows = [extent.rows for extent in _extents(placements)]
    return _shares([placement.row_slots for placement in placements], rows, device)


def shares_of_weights(placements: Sequence[Placement], layout: Layout) -> list[Share]:
    """The same for the sums over weights."""
    segments = [extent.segments for extent in _extents(placements)]
    slots = [placement.weight_slots for placement in placements]
    return _shares(slots, segments, layout.offsets.device)


def _extents(placements: Sequence[Placement]) -> list[Extent]:
    return [placement.extent for placement in placements if placement.extent is not None]


def _shares(
    slots: Sequence[dict[Peers, Slots]], sizes: Sequence[int], device: torch.device
) -> list[Share]:
    here: dict[Peers, list[int]] = {}
    there: dict[Peers, list[int]] = {}
    begin = 0
    for by_peers, size in zip(slots, sizes, strict=True):
        for peers, own in by_peers.items():
            here.setdefault(peers, []).extend(begin + index for index in own.here)
            there.setdefault(peers, []).extend(own.there)
        begin += size
    return [
        Share(
            peers,
            torch.tensor(here[peers], dtype=torch.int64, device=device),
            torch.tensor(there[peers], dtype=torch.int64, device=peers.device_type),
        )
        for peers in here
    ]
