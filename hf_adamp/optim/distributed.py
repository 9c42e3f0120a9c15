"""DTensor: where the rows of sharded weights live, and what must be added up between processes.

A row of a weight may be split between processes (`Shard(1)` and higher, tensor parallelism by
columns): then its statistics are sums of parts, added before the cosines. Or whole rows may be
spread over them (`Shard(0)`, FSDP2): then a weight's totals are. Either way it is one all-reduce of
a few floats a row or a weight, for all weights at once and for each dimension of a mesh.

What is added up, and in which order, depends on the weights alone: not on gradients, which a
process may lack, nor on their values. So processes cannot wait for each other in vain.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, distributed

from .invariance import ScaleInvariant, count_heads
from .projection import Extent, Statistic, has_rows

__all__ = [
    "Placement",
    "Reducer",
    "flattened_message",
    "is_sharded",
    "local_part",
    "refuse_flattened",
    "shard_number",
]

_REMEDY = (
    "shard with FSDP2 (`fully_shard`), which keeps the shape of weights, or set delta=0, which "
    "is AdamW (or SGD) by request"
)


def flattened_message(name: str) -> str:
    """What to say where a framework has put flat weights in the place of the optimizer's own."""
    return (
        f"{name} and its group had weights with rows when the optimizer was made and have none "
        "now: they were flattened, as DeepSpeed ZeRO does. Their rows cannot be seen, so nothing "
        f"would ever be projected; {_REMEDY}."
    )


_TOTALS = len(Statistic) + 1

# As many sets of weights as step.py keeps sections of.
_KEPT = 64


def is_sharded(tensor: Tensor) -> TypeGuard[Any]:
    """Whether this is a DTensor."""
    # There is none before its module is loaded, which takes half a second that others may save.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def refuse_flattened(param: Tensor, name: str) -> None:
    """Raise if the rows of this weight cannot be seen.

    Raises:
        RuntimeError: for the flat shards of FSDP1 and DeepSpeed ZeRO.
    """
    # Marks that the frameworks leave on a weight; neither has to be importable to be recognised.
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise RuntimeError(
            f"{name} is a flattened FSDP1 shard: its rows cannot be seen, so nothing would ever be "
            f"projected; {_REMEDY}."
        )
    attributes = vars(param)
    if "_hp_mapping" in attributes or any(name.startswith("ds_") for name in attributes):
        raise RuntimeError(
            f"{name} is partitioned by DeepSpeed ZeRO: its rows cannot be seen, so nothing would "
            f"ever be projected; {_REMEDY}."
        )


@dataclass(frozen=True)
class Placement:
    """A sharded weight's rows: how many are here, and where its sums have their place.

    Attributes:
        param: the weight itself, of which a step sees this process's part only.
        extent: rows here, columns and elements everywhere.
        row_slots: processes → where its rows begin in these processes' sum over rows.
        weight_slots: processes → where its segments begin in these processes' sum over weights.
    """

    param: Tensor
    extent: Extent
    row_slots: dict[_Peers, int]
    weight_slots: dict[_Peers, int]


@dataclass(frozen=True)
class _Peers:
    """The processes along a dimension of a mesh; equal for all meshes that share them.

    Attributes:
        group: their process group.
        device_type: where tensors have to be for them to talk.
    """

    group: Any
    device_type: str


@dataclass
class Reducer:
    """Adds up statistics between the processes that share weights.

    Built from all weights that are sharded, whether or not they have a gradient in a step.
    """

    placements: dict[Tensor, Placement] = field(default_factory=dict)
    row_counts: dict[_Peers, int] = field(default_factory=dict)
    weight_counts: dict[_Peers, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    # Made once for each set of weights that have a gradient.
    _found: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, params: Iterable[tuple[Tensor, ScaleInvariant]]) -> Reducer | None:
        """The reducer of the weights among these that are sharded, None where none is."""
        reducer = cls()
        for param, scale_invariant in params:
            if is_sharded(param):
                reducer._place(param, scale_invariant)
        return reducer if reducer.placements else None

    def _place(self, param: Any, scale_invariant: ScaleInvariant) -> None:
        shape, mesh = param.shape, param.device_mesh
        if any(placement.is_partial() for placement in param.placements):
            raise RuntimeError(
                f"a weight of shape {tuple(shape)} is placed {param.placements}: parts that have "
                "to be added up are no weight; redistribute it to Replicate() or Shard()."
            )
        # A mesh without this process: the weight is other processes' business.
        if not has_rows(shape) or mesh.get_coordinate() is None:
            return
        rows = param.to_local().shape[0]
        heads = _heads_here(param, rows, count_heads(scale_invariant, shape))
        extent = Extent(rows, Extent.of(shape).columns, shape.numel(), heads)
        row_slots: dict[_Peers, int] = {}
        weight_slots: dict[_Peers, int] = {}
        for index, placement in enumerate(param.placements):
            if placement.is_replicate() or mesh.size(index) == 1:
                continue
            peers = _Peers(mesh.get_group(index), mesh.device_type)
            slots, counts, size = (
                (weight_slots, self.weight_counts, extent.segments)
                if placement.dim in (0, -len(shape))
                else (row_slots, self.row_counts, rows)
            )
            slots[peers] = counts.get(peers, 0)
            counts[peers] = slots[peers] + size
        if param.dtype == torch.float64:
            self.dtype = torch.float64
        self.placements[param] = Placement(param, extent, row_slots, weight_slots)

    def add_rows(self, sections: Sequence[tuple[list[Placement], Tensor]]) -> None:
        """Make the statistics of split rows whole, in place.

        Args:
            sections: placements of the weights and the (5, R) statistics of their rows.
        """
        for peers, count in self.row_counts.items():
            parts = [
                (stats, self._find(found, peers, stats, rows=True)) for found, stats in sections
            ]
            self._all_reduce(peers, len(Statistic), count, parts)

    def add_weights(self, sections: Sequence[tuple[list[Placement], Tensor]]) -> None:
        """Make the totals of weights whose rows are spread whole, in place.

        Args:
            sections: placements of the weights and the (6, S) totals of their segments.
        """
        for peers, count in self.weight_counts.items():
            parts = [(sums, self._find(found, peers, sums, rows=False)) for found, sums in sections]
            self._all_reduce(peers, _TOTALS, count, parts)

    def _find(
        self, placements: list[Placement], peers: _Peers, like: Tensor, *, rows: bool
    ) -> tuple[Tensor, Tensor]:
        """Which columns of a section these processes add up, and their places in the sum."""
        key = (peers, rows, like.device, *map(id, placements))
        if key in self._found:
            return self._found[key]
        here: list[int] = []
        there: list[int] = []
        begin = 0
        for placement in placements:
            slots = placement.row_slots if rows else placement.weight_slots
            width = placement.extent.rows if rows else placement.extent.segments
            if peers in slots:
                here += range(begin, begin + width)
                there += range(slots[peers], slots[peers] + width)
            begin += width
        if len(self._found) >= _KEPT:
            self._found.clear()
        indices = (
            torch.tensor(here, dtype=torch.int64, device=like.device),
            torch.tensor(there, dtype=torch.int64, device=peers.device_type),
        )
        return self._found.setdefault(key, indices)

    def _all_reduce(
        self,
        peers: _Peers,
        height: int,
        width: int,
        parts: list[tuple[Tensor, tuple[Tensor, Tensor]]],
    ) -> None:
        # Where a process has nothing for a weight its zeros change no sum. With CPU offload the
        # weights' device is not the one that the processes talk on.
        buffer = torch.zeros(height, width, dtype=self.dtype, device=peers.device_type)
        for sums, (here, there) in parts:
            buffer.index_copy_(1, there, sums.index_select(1, here).to(buffer))
        distributed.all_reduce(buffer, group=peers.group)
        for sums, (here, there) in parts:
            sums.index_copy_(1, here, buffer.index_select(1, there).to(sums))


def _heads_here(param: Any, rows: int, heads: int) -> tuple[int, ...]:
    """How many of this process's rows belong to each head of a sharded weight."""
    if heads < 2:
        return (rows,) * heads
    here: Sequence[int] = range(param.shape[0])
    mesh = param.device_mesh
    for index, placement in enumerate(param.placements):
        if placement.is_replicate() or placement.dim not in (0, -param.ndim):
            continue
        # FSDP2 over tensor parallelism cuts each of the latter's parts: a part of every piece.
        pieces = getattr(placement, "split_factor", 1)
        at, count = mesh.get_coordinate()[index], mesh.size(index)
        here = [row for i in range(pieces) for row in _chunk(_chunk(here, i, pieces), at, count)]
    if len(here) != rows:
        raise RuntimeError(
            f"a weight of shape {tuple(param.shape)} is placed {param.placements} with {rows} rows "
            f"on this process, where {len(here)} were expected, so its heads cannot be found; "
            "use sizes that the mesh divides evenly, or scale_invariant='auto' for it."
        )
    size = param.shape[0] // heads
    counts = Counter(row // size for row in here)
    return tuple(counts[head] for head in range(heads))


def _chunk(rows: Sequence[int], index: int, count: int) -> Sequence[int]:
    """As `torch.chunk` does it, with empty chunks at the end where there are too few rows."""
    width = -(-len(rows) // count)
    return rows[index * width : (index + 1) * width]


def shard_number(param: Any) -> int:
    """Which part of a weight this process holds; 0 where it holds all of it."""
    number = 0
    if is_sharded(param) and (coordinate := param.device_mesh.get_coordinate()) is not None:
        for index, placement in enumerate(param.placements):
            if not placement.is_replicate():
                number = number * param.device_mesh.size(index) + coordinate[index]
    return number


def local_part(tensor: Any, like: Tensor) -> Any:
    """This process's part of a tensor that is, or is to be, sharded as the weight `like` is."""
    if not is_sharded(like) or not is_sharded(tensor):
        return tensor
    if tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    part: Any = tensor.to_local()
    # A redistribution may still be under way.
    return cast(Tensor, part.wait() if hasattr(part, "wait") else part)
